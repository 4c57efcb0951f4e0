"""Real Celery workers of a chaos world, and what can happen to them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.server import start_tied
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 30.0
CRY_SECONDS = 1.0
TAIL_LINES = 40


class Worker:
    """One ``celery worker``, a process group of its own: started at once, ready when ``wait_ready`` returns."""

    def __init__(
        self,
        name: str,
        *,
        environ: Mapping[str, str],
        folder: Path,
        queue: str,
        pool: str,
        concurrency: int,
        prefetch: int,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        #: When it was killed or told to end.
        self.gone_at: float | None = None
        command = [
            *(sys.executable, "-m", "celery", "-A", "tests.chaos.main:app", "worker", "-n", name, "-Q", queue),
            *("-P", pool, "-c", str(concurrency), "--prefetch-multiplier", str(prefetch), "-l", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "C_FORCE_ROOT": "1", "CHAOS_WORKER": name}
        with self.log.open("wb") as log:
            self._process = start_tied(
                command, env={**os.environ, **own, **environ}, cwd=folder, stdout=log, stderr=log
            )
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Until it consumes. Raises ``AssertionError`` with its log when it does not."""
        wait_until(lambda: self.has_ended or self.says(" ready."), f"{self.name} is ready", START_SECONDS)
        assert not self.has_ended, self.tail()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def is_lost(self) -> bool:
        """Whether it has ended though nobody told it to."""
        return self.has_ended and self.gone_at is None

    @property
    def was_killed(self) -> bool:
        """Whether it was SIGKILL that ended it."""
        return self._process.poll() == -signal.SIGKILL

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    # Faults.

    def kill(self) -> None:
        """SIGKILL of its main process only: what it leaves behind has to end by itself."""
        self.gone_at = time.monotonic()
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGSTOP of its main process: prefork's children go on."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT of its main process."""
        self._signal(signal.SIGCONT)

    def stop_all(self) -> None:
        """SIGSTOP of all its processes."""
        self._signal_all(signal.SIGSTOP)

    def go_on_all(self) -> None:
        """SIGCONT of all its processes."""
        self._signal_all(signal.SIGCONT)

    def children(self) -> set[int]:
        """The processes of its pool."""
        with suppress(psutil.NoSuchProcess):
            return {child.pid for child in psutil.Process(self.pid).children()}
        return set()

    def ask_to_end(self, *, cold: bool = False) -> None:
        """Begin its warm shutdown, or its cold one."""
        if self.gone_at is None:
            self.gone_at = time.monotonic()
        self._signal(signal.SIGQUIT if cold else signal.SIGTERM)

    def wait_ended(self) -> bool:
        """Whether it ends in time; if not, its log has what each of its threads was doing."""
        deadline = time.monotonic() + STOP_SECONDS
        while not self.has_ended and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self.has_ended:
            self._signal(signal.SIGUSR1)
            time.sleep(CRY_SECONDS)
        return self.has_ended

    def remove(self) -> None:
        """End whatever is left of it, at once."""
        if self.gone_at is None:
            self.gone_at = time.monotonic()
        self._signal_all(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        if not self.has_ended:
            os.kill(self.pid, number)

    def _signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
