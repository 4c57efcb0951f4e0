"""How the gate's drain comes to run in the worker's own thread, whoever asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Event, Thread, get_ident
from typing import Any


class LoopWaker:
    """Runs ``drain`` in Celery's event loop. A self-pipe wakes it from another thread: older hubs sleep on."""

    def __init__(self, hub: Any, drain: Callable[[], None]) -> None:
        self._hub, self._drain = hub, drain
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._pending = False
        self._closed = False
        self._loop_thread = get_ident()

    def register(self) -> None:
        """Listen in the hub; called again at each start of the loop, since a broken connection resets the hub."""
        self._loop_thread = get_ident()
        self._hub.add_reader(self._reader, self._on_readable)
        self()

    def __call__(self) -> None:
        """Have ``drain`` run soon."""
        if self._closed:
            # The worker has stopped, and the pipe's number may be another file's by now.
            return
        if get_ident() == self._loop_thread:
            if not self._pending:
                self._pending = True
                self._hub.call_soon(self._run)
            return
        try:
            os.write(self._writer, b"x")
        except OSError:
            # Full: a wake-up is on its way already.
            return

    def close(self) -> None:
        """Listen no more. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._hub.remove_reader(self._reader)
        os.close(self._reader)
        os.close(self._writer)

    def _on_readable(self) -> None:
        try:
            os.read(self._reader, 4096)
        except OSError:
            return
        self._run()

    def _run(self) -> None:
        self._pending = False
        self._drain()


class ThreadWaker:
    """Runs ``drain`` in a thread (a greenlet, under gevent and eventlet) where there is no event loop."""

    def __init__(self, drain: Callable[[], None]) -> None:
        self._drain = drain
        self._asked = Event()
        self._stopped = False
        self._thread = Thread(target=self._loop, name="backfill-gate", daemon=True)

    def register(self) -> None:
        """Start, once."""
        if not self._thread.is_alive():
            self._thread.start()

    def __call__(self) -> None:
        """Have ``drain`` run soon."""
        self._asked.set()

    def close(self) -> None:
        """Run no more."""
        self._stopped = True
        self._asked.set()

    def _loop(self) -> None:
        while not self._stopped:
            self._asked.wait()
            self._asked.clear()
            if not self._stopped:
                self._drain()
