"""Small Python programs, as processes of their own, that a test stops, kills and listens to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import psutil

from tests.waiting import wait_until

END_SECONDS = 20.0


class Program:
    """Runs ``code`` with ``args`` in a process group of its own, under ``wrapper`` if there is one.

    ``say("...")`` in the code sends a line to the test; what is left of the group is killed at the end.
    """

    def __init__(self, code: str, *args: str, wrapper: Sequence[str] = (), **options: Any) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", PROLOGUE + code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.pid = self.process.pid

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.communicate()

    def line(self) -> str:
        """The next line it says; empty when it has ended. Fails when it ended with an error."""
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline().strip()
        if not line and self.process.wait(END_SECONDS) > 0:
            raise AssertionError(self.process.stderr.read())
        return line

    def tell(self, line: str = "") -> None:
        """Answer its ``input()``."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Signal its first process; a stop has taken effect when this returns."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            wait_until(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, "it is stopped")

    def end(self) -> int:
        """How it ended; waits for that."""
        return self.process.wait(END_SECONDS)


PROLOGUE = "import ctypes, os, signal, sys, time\nfrom functools import partial\nsay = partial(print, flush=True)\n"


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@cache
def can_unshare() -> bool:
    """Whether this machine lets the tests make namespaces."""
    try:
        return subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
