"""Servers of one test alone, with settings of its own: for what nobody may do to a shared one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from celery_backfill.embedded.server import Launch, SharedServer
from celery_backfill.embedded.state import State, write_private
from celery_backfill.embedded.valkey import Valkey


class Odd(Valkey):
    """The embedded Valkey with further lines of configuration; the last line on a subject counts."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self._lines = lines

    def prepare(self, home: Path, state: State, alive: int) -> Launch:
        launch = super().prepare(home, state, alive)
        configuration = home / "valkey.conf"
        write_private(configuration, configuration.read_text() + "\n".join(self._lines) + "\n")
        return launch


class Serve:
    """Starts servers in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[SharedServer] = []

    def __call__(self, *lines: str) -> str:
        """Start one with these lines of configuration; its URL."""
        self.started.append(SharedServer(self._folder / f"server{len(self.started)}", Odd(lines)))
        return self.started[-1].join()


@contextmanager
def serving(folder: Path) -> Iterator[Serve]:
    """Starts servers that are stopped at the end."""
    serve = Serve(folder)
    try:
        yield serve
    finally:
        for server in serve.started:
            server.stop()


def as_user(url: str, user: str, password: str) -> str:
    """The URL with this user."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))
