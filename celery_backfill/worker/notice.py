"""Raises an exception in a task's running code, from outside: how a run is told that its lease is lost (C22).

The code to be told runs inside ``with interruptible():``, and how it is told depends on what runs it:

- a process's main thread (prefork's children, solo): a signal. It interrupts waiting too: a sleep, a socket, a lock.
  A worker's main process sends it to a child with ``send_to_child``; the child itself decides whether to raise.
- another thread (the threads pool): Python's asynchronous exception. Code that waits in C (a sleep, a socket, a query)
  hears of it only when that returns.
- a greenlet (gevent, eventlet): the hub throws it into the greenlet, wherever that waits in the hub. One that computes
  without ever yielding lets nobody run who could tell it.

What C code does on its own (a query of libpq, a long computation) goes on to its end on every pool.

A run is told at most once. The exception comes out of the ``with`` statement or of the code inside it, never later:
neither the next task nor the pool's own code sees it. It may come as late as in leaving, when the code has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import RLock, get_ident, main_thread
from types import FrameType
from typing import Any, Self

from . import greenlets

#: Sent to a pool's child. Programs that tasks start do not inherit its handler.
SIGNAL: int = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2


class Interruptible(ABC):
    """One run of code that can be interrupted while it is inside. Made by ``interruptible()``, and used once.

    Somebody else's signal (a soft time limit) may break off its ``__exit__``. It does no harm to call that again.
    """

    def __init__(self) -> None:
        self._inside = False
        self._told = False

    def __enter__(self) -> Self:
        self._inside = True
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def interrupt(self, error: type[BaseException]) -> None:
        """Raise it in the code inside, soon, if there is any. Returns at once. Call it from other code than that."""


def interruptible() -> Interruptible:
    """The kind that fits how the current code runs."""
    if (found := greenlets.current()) is not None:
        return InGreenlet(*found)
    return InMainThread() if get_ident() == main_thread().ident else InThread()


# By a signal: prefork, solo.


def install_in_child(should_raise: Callable[[], BaseException | None]) -> None:
    """Listen in this process for ``send_to_child``. Call it in a pool's child, in its main thread.

    When the signal comes while code is inside an ``interruptible()``, ``should_raise`` is asked, in the midst of that
    code, and what it returns is raised there. It must not wait, nor take a lock that the task's code may hold.
    """
    _main.should_raise = should_raise
    _listen()


def send_to_child(pid: int) -> None:
    """Have that child ask what it was installed with. One that is gone is nothing to complain of.

    A process that never listened would die of the signal: send it only to a child that has accepted a task and has not
    been waited for.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, SIGNAL)


class InMainThread(Interruptible):
    """Runs in its process's main thread, where Python handles signals."""

    _wanted: type[BaseException] | None = None
    _outer: InMainThread | None = None

    def __enter__(self) -> Self:
        # Here as well as at the child's start: without real-time signals, billiard may have taken this one since.
        _listen()
        if _main.run is not None and not _main.run._told:
            self._outer = _main.run
        _main.run = self
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._inside = False
        if _main.run is self:
            _main.run = self._outer

    def interrupt(self, error: type[BaseException]) -> None:
        # Once: real-time signals queue up.
        if self._inside and self._wanted is None:
            self._wanted = error
            # Not to the process: it is the main thread's waiting that shall be interrupted.
            signal.pthread_kill(main_thread().ident or 0, SIGNAL)

    def take(self) -> BaseException | type[BaseException] | None:
        """What to raise now, in this run or, if it is inside another one, in that."""
        error = None if self._told else self._wanted or _main.should_raise()
        if error is None:
            return None if self._outer is None else self._outer.take()
        # Whatever this breaks off, were it __exit__ itself: a run that was told counts as left.
        self._told = True
        return error


def _never() -> None:
    return None


@dataclass
class _Main:
    run: InMainThread | None = None
    should_raise: Callable[[], BaseException | None] = _never


_main = _Main()


def _listen() -> None:
    if signal.getsignal(SIGNAL) is not _on_signal:
        signal.signal(SIGNAL, _on_signal)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    error = None if _main.run is None else _main.run.take()
    if error is not None:
        raise error


# By an asynchronous exception: threads.


class InThread(Interruptible):
    """Runs in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._ident = get_ident()
        self._lock = RLock()

    def __exit__(self, *_: object) -> None:
        # The exception may strike here too. Then it has been raised, and nothing is left to do: not even with the lock,
        # which may never be free again.
        with self._lock:
            self._inside = False
            if self._told:
                # CPython has raised it by now, but does not promise to.
                clear_in_thread(self._ident)

    def interrupt(self, error: type[BaseException]) -> None:
        # Never waits: if the lock is taken, the run is leaving, or being told by somebody else.
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._inside and not self._told:
                self._told = True
                raise_in_thread(self._ident, error)
        finally:
            self._lock.release()


def raise_in_thread(ident: int, error: type[BaseException]) -> None:
    """Raise it in that thread, at its next turn in Python code, wherever it then is; nothing if there is no such."""
    _set_async_exc(ctypes.c_ulong(ident), ctypes.py_object(error))


def clear_in_thread(ident: int) -> None:
    """Take back what was not raised yet."""
    _set_async_exc(ctypes.c_ulong(ident), None)


_set_async_exc: Any = ctypes.pythonapi.PyThreadState_SetAsyncExc


# By its hub: gevent, eventlet.


class InGreenlet(Interruptible):
    """Runs in a greenlet; ``call_in_hub`` is its hub's way in."""

    def __init__(self, greenlet: Any, call_in_hub: greenlets.CallInHub) -> None:
        super().__init__()
        self._greenlet, self._call_in_hub = greenlet, call_in_hub

    def __exit__(self, *_: object) -> None:
        self._inside = False

    def interrupt(self, error: type[BaseException]) -> None:
        self._call_in_hub(partial(self._raise, error))

    def _raise(self, error: type[BaseException]) -> None:
        # In the hub the greenlet can neither leave nor go on between this question and the exception.
        if self._inside and not self._told:
            self._told = True
            self._greenlet.throw(error)
