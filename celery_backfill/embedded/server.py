"""One server that several processes share: joined, started by the first of them, stopped with the last.

Files in the server's own folder: ``users.lock`` (each user holds it shared), ``start.lock`` (held while somebody
starts or stops the server), ``alive.lock`` (held by supervisor and server, see ``supervisor``), ``state.json``,
``server.log`` and ``data``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from celery_backfill.errors import ConfigurationError

from . import users
from .ending import halt
from .locks import EXCLUSIVE, POLL_SECONDS, exclusive, held_exclusively, open_lock, try_lock
from .state import State, new_state, port_is_free, with_new_port

START_SECONDS = 60.0
ATTEMPTS = 3
LOG_BYTES = 1_000_000
LOG_TAIL_CHARS = 1_500
SUPERVISOR = Path(__file__).with_name("supervisor.py")
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run a server. ``uid`` and ``gid`` are None to run it as this process."""

    command: list[str]
    cwd: Path
    uid: int | None = None
    gid: int | None = None


class Program(Protocol):
    """A kind of server."""

    name: str
    variable: str

    def prepare(self, home: Path, state: State, alive: int) -> Launch:
        """Make its data and configuration ready. Called by one process at a time, while no server runs there.

        Programs that write to the data inherit ``alive``, so that what outlives a killed starter is waited for.
        """

    def answers(self, state: State) -> bool:
        """Whether it takes commands now."""

    def url(self, state: State) -> str: ...


class SharedServer:
    def __init__(self, folder: Path, program: Program) -> None:
        self.folder = folder.expanduser().resolve()
        self.home = self.folder / program.name
        self._program = program
        self._state_file = self.home / "state.json"
        self._alive_lock = self.home / "alive.lock"

    def join(self) -> str:
        """Use the server until this process ends; start it if it does not run. Returns its URL."""
        deadline = time.monotonic() + START_SECONDS
        with users.guard, self._explained():
            self._make_folders()
            users.enter(self.home, deadline)
            if url := self._answering_url():
                return url
            with exclusive(self.home / "start.lock", deadline):
                return self._start(deadline)

    def stop(self) -> None:
        """Stop the server now and wait until it is gone."""
        with users.guard, self._explained():
            if self._alive_lock.exists():
                with exclusive(self.home / "start.lock", time.monotonic() + START_SECONDS):
                    halt(self._alive_lock)
            users.forget(self.home)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"the embedded {self._program.name} cannot use {self.folder}: {error}. "
                f"Name a folder of your own, or set {self._program.variable} to the URL of a server"
            ) from error

    def _make_folders(self) -> None:
        for folder in (self.folder, self.home):
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                # Root's PostgreSQL runs as another user, who has to pass through. What is private is so by itself.
                folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        if self.home.stat().st_uid != os.geteuid():
            raise PermissionError(f"it belongs to another user (uid {self.home.stat().st_uid})")
        ignore = self.folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")

    def _answering_url(self) -> str | None:
        state = State.read(self._state_file)
        # Without the lock, what answers on that port may be somebody else's server.
        if state and held_exclusively(self._alive_lock) and self._program.answers(state):
            return self._program.url(state)
        return None

    def _start(self, deadline: float) -> str:
        for _ in range(ATTEMPTS):
            alive = self._take_over(deadline)
            if alive is None:
                break
            state = self._launch(alive)
            if self._becomes_ready(state, deadline) or port_is_free(state.port):
                break
        if url := self._answering_url():
            return url
        raise ConfigurationError(
            f"the embedded {self._program.name} does not start or does not answer; the end of {self._log}:\n"
            f"{self._log_tail()}"
        )

    def _take_over(self, deadline: float) -> int | None:
        """The lock of a server that is gone, or None if it is there: it answers by now, or never does."""
        fd = open_lock(self._alive_lock)
        while not try_lock(fd, EXCLUSIVE):
            if self._answering_url() or time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(POLL_SECONDS)
        os.truncate(fd, 0)
        return fd

    def _launch(self, alive: int) -> State:
        """Start a supervisor with the server. The lock goes over to them."""
        try:
            state = State.read(self._state_file) or new_state()
            if not port_is_free(state.port):
                state = with_new_port(state)
            state.write(self._state_file)
            self._supervise(self._program.prepare(self.home, state, alive), alive)
            return state
        finally:
            os.close(alive)

    def _supervise(self, launch: Launch, alive: int) -> None:
        spec = {
            "command": launch.command,
            "cwd": str(launch.cwd),
            "uid": launch.uid,
            "gid": launch.gid,
            "users": str(self.home / "users.lock"),
            "alive": alive,
        }
        with self._open_log() as log:
            subprocess.run(
                [sys.executable, "-I", "-S", str(SUPERVISOR), json.dumps(spec)],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                pass_fds=[alive],
                start_new_session=True,
                check=True,
            )

    def _becomes_ready(self, state: State, deadline: float) -> bool:
        while held_exclusively(self._alive_lock) and time.monotonic() < deadline:
            if self._program.answers(state):
                return True
            time.sleep(POLL_SECONDS)
        return False

    @property
    def _log(self) -> Path:
        return self.home / "server.log"

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[int]:
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._log.replace(self._log.with_suffix(".old.log"))
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if self._log.exists() else "(no log)"
