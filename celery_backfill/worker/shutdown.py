"""The pool's end, however it is brought about: nothing of ours in a signal handler, and no lease let go of too soon.

At a cold shutdown Celery stops the pool from inside a signal handler. That may have interrupted the gate in the middle
of a call to the store, and under gevent and eventlet nothing can wait there. So the handler only says that it is one;
the pool is stopped when the worker terminates it, which is next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from celery.bootsteps import RUN


class Ending(Protocol):
    """What is told of the pool's end: the gate."""

    def go_cold(self) -> None: ...
    def kill_running(self) -> None: ...


def take_over(worker: Any, gate: Ending, ended: Callable[[], None]) -> None:
    """Have the gate told of a cold shutdown, and ``ended`` called when the pool has stopped, or all but its runs."""
    pool = worker.pool
    wait_softly, stop, terminate = worker.wait_for_soft_shutdown, pool.stop, pool.terminate

    waits_later = False

    def begin_cold() -> None:
        # In the signal handler. The hub of greenlets, which may be what it interrupted, cannot sleep.
        nonlocal waits_later
        gate.go_cold()
        waits_later = pool.is_green
        if not waits_later:
            wait_softly()

    def stop_and_tell() -> None:
        if worker.blueprint.state == RUN:
            # In the signal handler; the worker terminates its pool next.
            return
        try:
            stop()
        finally:
            ended()

    def terminate_and_tell() -> None:
        try:
            if waits_later:
                wait_softly()
            gate.kill_running()
            stop()
        finally:
            # Also where another signal has broken off the wait.
            try:
                terminate()
            finally:
                ended()

    worker.wait_for_soft_shutdown = begin_cold
    pool.stop, pool.terminate = stop_and_tell, terminate_and_tell
