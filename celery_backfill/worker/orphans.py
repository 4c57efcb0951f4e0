"""Ends a pool's child whose worker is gone: nobody can tell it to stop, and nobody hears of its results (C23).

On Linux the kernel kills a child the moment its parent dies, whatever it does then: Python code, a sleep, a C call that
holds the GIL, stopped by a signal. Celery asks for that when a child starts, but says nothing if the parent died before
it asked, or if the system would not do it. Elsewhere a thread looks twice a second, and must wait for the GIL to do so.

The kernel's "parent" is the thread that forked. With brokers that Celery runs in an event loop (Redis, AMQP) that is
the worker's main thread. With others (memory) a thread forks what replaces a child; it ends in a warm shutdown, and
then the signal that Celery asked for kills those children in the midst of their tasks.

Not covered: programs and processes that a task starts. They are children of the pool's child, and the signal is not
inherited. A task that starts some should have them watch their standard input, or ask for such a signal themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from threading import Thread
from time import sleep

LOOK_SECONDS = 0.5
PR_SET_PDEATHSIG = 1


def guard_against_orphanhood(parent_pid: int) -> None:
    """Have this process killed when its parent dies. Call it in each child at its start, with the pid that forked it.

    A child that is an orphan already is killed at once.
    """
    if not _kernel_kills_with_parent():
        Thread(target=_watch, args=(parent_pid,), name="backfill-orphan", daemon=True).start()
    # After asking: a parent that died before, the kernel does not tell of.
    exit_if_orphaned(parent_pid)


def exit_if_orphaned(parent_pid: int) -> None:
    """Kill this process if ``parent_pid`` is not its parent any more. Costs one system call."""
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _kernel_kills_with_parent() -> bool:
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) == 0)


def _watch(parent_pid: int) -> None:
    while True:
        exit_if_orphaned(parent_pid)
        sleep(LOOK_SECONDS)
