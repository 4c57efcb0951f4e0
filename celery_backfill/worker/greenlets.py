"""The greenlet that runs now, and a way into its hub from any greenlet and any thread.

What the hub calls, it calls between two greenlets' turns: none of its greenlets does anything meanwhile. Imports
neither gevent nor eventlet: where greenlets run, one of them has been imported.
"""

from __future__ import annotations

import os
import posix
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

Call = Callable[[], None]
CallInHub = Callable[[Call], object]


def current() -> tuple[Any, CallInHub] | None:
    """The greenlet and its hub's way in. None for code that no hub of gevent or eventlet runs."""
    return _in_gevent() or _in_eventlet()


def _in_gevent() -> tuple[Any, CallInHub] | None:
    gevent: Any = sys.modules.get("gevent.hub")
    if gevent is None:
        return None
    greenlet = gevent.getcurrent()
    return (greenlet, greenlet.parent.loop.run_callback_threadsafe) if isinstance(greenlet.parent, gevent.Hub) else None


def _in_eventlet() -> tuple[Any, CallInHub] | None:
    eventlet: Any = sys.modules.get("eventlet.greenthread")
    if eventlet is None:
        return None
    greenlet = eventlet.getcurrent()
    return (greenlet, _door(eventlet.hubs.get_hub())) if isinstance(greenlet, eventlet.GreenThread) else None


@cache
def _door(hub: Any) -> Door:
    return Door(hub)


class Door:
    """The way into a hub of eventlet, which has none for other threads: a pipe that it listens to, as long as it lives.

    The pipe is used through ``posix``: ``os.read`` and ``os.write`` may be patched to switch greenlets.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._calls: deque[Call] = deque()
        reader, self._writer = posix.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(self._writer, False)
        hub.add(hub.READ, reader, self._on_readable, _ignore, _ignore)

    def __call__(self, call: Call) -> None:
        self._calls.append(call)
        # Full: the hub will read, and find this call too.
        with suppress(BlockingIOError):
            posix.write(self._writer, b"x")

    def _on_readable(self, reader: int) -> None:
        posix.read(reader, 4096)
        while self._calls:
            # Not called from here: for what a listener raises, the hub stops listening.
            self._hub.schedule_call_global(0, self._calls.popleft())


def _ignore(*_: object) -> None:
    """The pipe is never closed."""
