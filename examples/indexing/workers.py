"""The demo's real Celery workers: processes of their own, with a log each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from .app import LEAVE_WITH_PARENT, QUEUE
from .errors import DemoFailedError

WARM_SECONDS = 20
TAIL_LINES = 25


class Worker:
    """One ``celery worker`` (prefork). Names, log and end are its own; a Ctrl-C in the terminal does not reach it."""

    def __init__(self, number: int, *, concurrency: int, folder: Path) -> None:
        self.name = f"indexing{number}@{socket.gethostname()}"
        self.log = folder / f"worker{number}.log"
        self._concurrency = concurrency
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, LEAVE_WITH_PARENT: "1", "C_FORCE_ROOT": "1"},
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises ``DemoFailedError`` with the end of the log when the worker is gone."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise DemoFailedError(f"worker {self.name} ended early with exit code {code}. {self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        with self.log.open(errors="replace") as log:
            lines = deque(log, TAIL_LINES)
        return f"The end of its log, {self.log}:\n{''.join(lines).rstrip() or '(empty)'}"

    def ask_to_stop(self) -> None:
        """Begin its warm shutdown: it finishes what runs and gives back the rest."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; answers whether it came."""
        try:
            if self._process:
                self._process.wait(max(seconds, 0))
            return True
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        """End whatever is left of it and of its pool."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "examples.indexing.app", "worker"),
            *("--pool", "prefork", "--concurrency", str(self._concurrency)),
            *("--queues", QUEUE, "--hostname", self.name, "--loglevel", "WARNING", "--without-gossip"),
        ]


class Workers:
    """All workers of one run. Left as a context, none of their processes is alive."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self.names = frozenset(worker.name for worker in workers)
        self.logs = tuple(str(worker.log) for worker in workers)

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        for worker in self._workers:
            worker.check()

    def tails(self) -> str:
        return "\n".join(worker.tail() for worker in self._workers)

    def stop(self) -> list[str]:
        """Warm shutdown of all at once; answers the names of those that had to be killed. May be called again."""
        try:
            for worker in self._workers:
                worker.ask_to_stop()
            deadline = time.monotonic() + WARM_SECONDS
            return [worker.name for worker in self._workers if not worker.wait(deadline - time.monotonic())]
        finally:
            for worker in self._workers:
                worker.kill()
