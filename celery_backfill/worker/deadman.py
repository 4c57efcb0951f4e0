"""Kills this process at a time set beforehand, unless it is set again first: for leases not to be outlived (C14).

On Linux a timer of the kernel does it. It needs no thread and no GIL, so it fires inside a C call that holds the GIL,
and it kills a process that is stopped (SIGSTOP) as well: after SIGCONT none of its code runs.

A process that is pid 1 of its namespace, as the first one of a container often is, ignores even SIGKILL from inside.
There the timer's signal calls the C library's ``_exit``. While such a process is stopped it stays, and it exits when it
is continued.

Elsewhere, macOS above all, a thread does it. It waits for the GIL, and is stopped together with its process: whatever
the other threads do first after SIGCONT is done.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from threading import Condition, Thread
from typing import Any, Protocol

SIGEV_SIGNAL = 0
TIMER_ABSTIME = 1
NANOSECONDS = 1_000_000_000
#: Before glibc 2.34 the timers are in librt; in musl they always were in libc.
LIBRARIES = (None, "librt.so.1")


class DeadMansTimer:
    """One deadline of this process, on the clock of ``time.monotonic()``. Not armed at first.

    A fork inherits no deadline; it may use the timer it inherited, which is then its own. Use one from one thread at a
    time.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._timer: _Timer | None = None

    def arm(self, at_monotonic: float) -> None:
        """Die at that time, and not at the one armed before. A time that has passed kills at once.

        Raises ``OSError`` when the system has no timer to give (EAGAIN: too many pending signals of this user).
        """
        if self._timer is None or self._pid != os.getpid():
            self._timer, self._pid = _new_timer(), os.getpid()
        self._timer.arm(at_monotonic)

    def disarm(self) -> None:
        """Die no more."""
        if self._timer is not None and self._pid == os.getpid():
            self._timer.disarm()

    def close(self) -> None:
        """Disarm, and give the timer back to the system."""
        if self._timer is not None and self._pid == os.getpid():
            self._timer.close()
        self._timer = None


def available() -> bool:
    """Whether the kernel does it; else a thread does what a thread can."""
    return _library() is not None


class _Timer(Protocol):
    def arm(self, at: float) -> None: ...
    def disarm(self) -> None: ...
    def close(self) -> None: ...


def _new_timer() -> _Timer:
    library = _library()
    return ThreadTimer() if library is None else KernelTimer(library)


@cache
def _library() -> ctypes.CDLL | None:
    for name in LIBRARIES if sys.platform == "linux" else ():
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        if hasattr(library, "timer_create"):
            return library
    return None


class SignalEvent(ctypes.Structure):
    """``struct sigevent``: 64 bytes in glibc, musl and the kernel, whatever the machine."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * (64 - ctypes.sizeof(ctypes.c_void_p) - 2 * ctypes.sizeof(ctypes.c_int))),
    ]


class TimeSpec(ctypes.Structure):
    """``struct timespec``, of the names without a 64 at the end."""

    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class TimerSpec(ctypes.Structure):
    """``struct itimerspec``."""

    _fields_ = [("interval", TimeSpec), ("value", TimeSpec)]


class KernelTimer:
    """A POSIX timer whose signal ends this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._id = ctypes.c_void_p()
        event = SignalEvent(signal=_deadly_signal(library), notify=SIGEV_SIGNAL)
        _check(library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._id)))

    def arm(self, at: float) -> None:
        # All zero would disarm it.
        seconds, nanoseconds = divmod(max(1, round(at * NANOSECONDS)), NANOSECONDS)
        self._set(TimerSpec(value=TimeSpec(seconds, nanoseconds)))

    def disarm(self) -> None:
        self._set(TimerSpec())

    def close(self) -> None:
        _check(self._library.timer_delete(self._id))

    def _set(self, spec: TimerSpec) -> None:
        _check(self._library.timer_settime(self._id, TIMER_ABSTIME, ctypes.byref(spec), None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _deadly_signal(library: ctypes.CDLL) -> int:
    if os.getpid() != 1:
        return signal.SIGKILL
    number = int(signal.SIGRTMIN) + 6
    set_handler: Callable[..., Any] = library.signal
    set_handler(number, library._exit)
    return number


class ThreadTimer:
    """A thread that waits and kills."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._at: float | None = None
        self._closed = False
        self.thread = Thread(target=self._loop, name="backfill-deadman", daemon=True)
        self.thread.start()

    def arm(self, at: float) -> None:
        self._change(at)

    def disarm(self) -> None:
        self._change(None)

    def close(self) -> None:
        self._closed = True
        self._change(None)

    def _change(self, at: float | None) -> None:
        with self._changed:
            self._at = at
            self._changed.notify()

    def _loop(self) -> None:
        with self._changed:
            while not self._closed:
                left = None if self._at is None else self._at - time.monotonic()
                if left is not None and left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._changed.wait(left)
