"""Real Celery workers, each a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 20.0
TAIL_LINES = 30

POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")
#: Pools that run several tasks at once. While solo runs one, its worker does nothing else: it reads no message either.
WIDE_POOLS = POOLS[:4]
#: Pools that can end a task which runs.
KILLING_POOLS = ("prefork", "gevent", "eventlet")


class Worker:
    """One ``celery worker``: started at once, ready when ``wait_ready`` returns."""

    def __init__(
        self,
        name: str,
        *,
        environ: Mapping[str, str],
        folder: Path,
        queues: Sequence[str],
        pool: str = "prefork",
        concurrency: int = 2,
        prefetch: int = 4,
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.pool = pool
        self.log = folder / f"{name}.log"
        command = [
            *(sys.executable, "-m", "celery", "-A", "tests.worker.main:app", "worker"),
            *("-n", name, "-Q", ",".join(queues), "-P", pool, "-c", str(concurrency)),
            *("--prefetch-multiplier", str(prefetch), "-l", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            *options,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environ},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def wait_ready(self) -> None:
        """Until it consumes. Raises ``AssertionError`` with its log when it does not."""
        wait_until(lambda: self.has_ended or self.says(f"{self.name} ready."), f"{self.name} is ready", START_SECONDS)
        assert not self.has_ended, self.tail()

    @property
    def has_ended(self) -> bool:
        """Whether its main process is gone."""
        return self.process.poll() is not None

    def says(self, text: str) -> bool:
        """Whether its log has this text."""
        return text in self.log.read_text(errors="replace")

    def count(self, text: str) -> int:
        """How often its log has this text."""
        return self.log.read_text(errors="replace").count(text)

    def wait_says(self, text: str, times: int = 1, timeout: float = 15.0) -> None:
        """Until its log has this text so often."""
        wait_until(lambda: self.count(text) >= times, f"{self.name} says {text!r} {times} times", timeout)

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def signal(self, number: int) -> None:
        """Signal its main process only."""
        os.kill(self.pid, number)

    def ask_to_stop(self) -> None:
        """Warm shutdown; returns at once."""
        if not self.has_ended:
            self.signal(signal.SIGTERM)

    def stop(self) -> None:
        """Warm shutdown; until it has ended. Raises ``AssertionError`` when it does not end, and kills it."""
        if not self.has_ended:
            self.ask_to_stop()
            self.wait_ended()

    def wait_ended(self) -> None:
        """Until its main process has ended. Raises ``AssertionError`` when it does not, and kills it."""
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.tail()}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the whole group, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)


class Crew:
    """The workers of one place."""

    def __init__(self, environ: Mapping[str, str], folder: Path, domain: str) -> None:
        self._environ, self._folder, self._domain = environ, folder, domain
        self.all: list[Worker] = []

    def start(
        self,
        *,
        queues: Sequence[str],
        environ: Mapping[str, str] | None = None,
        ready: bool = True,
        **options: Any,
    ) -> Worker:
        """One more worker; ready, unless the caller waits for that itself. Options are those of ``Worker``."""
        worker = Worker(
            f"w{len(self.all) + 1}@{self._domain}",
            environ={**self._environ, **(environ or {})},
            folder=self._folder,
            queues=queues,
            **options,
        )
        self.all.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    def start_many(self, number: int, **options: Any) -> list[Worker]:
        """Several at once; all ready."""
        workers = [self.start(ready=False, **options) for _ in range(number)]
        for worker in workers:
            worker.wait_ready()
        return workers

    def kill(self) -> None:
        """Kill all, at once."""
        for worker in self.all:
            worker.kill()

    def dismiss(self) -> None:
        """End all. Raises ``AssertionError`` for the first that did not end by itself; none is left in any case."""
        try:
            for worker in self.all:
                if not worker.has_ended:
                    with suppress(ProcessLookupError):
                        worker.signal(signal.SIGCONT)
                        worker.signal(signal.SIGTERM)
            for worker in self.all:
                worker.wait_ended()
        finally:
            self.kill()
