"""How many more tasks the pool can run now, counted by the gate on every pool.

Only prefork counts its slots itself, in a semaphore that plain tasks take too; there a slot is taken from it and kept
in hand until something runs in it. A broker reconnect resets that semaphore while children still run, so the gate's own
count bounds it (F7).
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol


class Slots(Protocol):
    """Slots of one pool. A slot is reserved, then either used and ended, or given back."""

    def reserve(self) -> bool:
        """Take a free slot; False when there is none."""

    def ask(self) -> None:
        """Have the gate woken when a slot is free."""

    def give_back(self) -> None:
        """A reserved slot is not needed after all."""

    def ended(self) -> None:
        """What ran in a slot has ended."""

    def rest(self) -> None:
        """Nothing is left to start: leave free slots to others."""

    def reset(self) -> None:
        """The pool's own count was reset by a broker reconnect."""


class CountedSlots:
    """Slots of a pool that counts none itself: threads, gevent, eventlet, solo."""

    def __init__(self, limit: Callable[[], int], others: Callable[[], int]) -> None:
        self._limit, self._others = limit, others
        self._used = 0
        self._lock = Lock()

    def reserve(self) -> bool:
        with self._lock:
            if self._used + self._others() >= self._limit():
                return False
            self._used += 1
            return True

    def ask(self) -> None:
        """Each end of a task wakes the gate, and its tick does for plain tasks."""

    def give_back(self) -> None:
        with self._lock:
            self._used -= 1

    ended = give_back

    def rest(self) -> None:
        """Nothing is held."""

    def reset(self) -> None:
        """Nothing was reset."""


class SemaphoreSlots:
    """Slots of a prefork pool, taken from Celery's own semaphore. Used from the event loop's thread only."""

    def __init__(self, semaphore: Any, limit: Callable[[], int], wake: Callable[[], None]) -> None:
        self._semaphore, self._limit, self._wake = semaphore, limit, wake
        self._used = 0
        self._in_hand = 0
        self._asked = False

    def reserve(self) -> bool:
        if self._used >= self._limit():
            return False
        if self._in_hand:
            self._in_hand -= 1
        elif self._semaphore.value > 0:
            self._semaphore.acquire(_nothing)
        else:
            return False
        self._used += 1
        return True

    def ask(self) -> None:
        # At the gate's own limit the semaphore may say otherwise (F7); the next end wakes the gate then.
        if not self._asked and self._used < self._limit():
            self._asked = True
            self._semaphore.acquire(self._granted)

    def give_back(self) -> None:
        self._used -= 1
        self._in_hand += 1

    def ended(self) -> None:
        # The pool itself has released its semaphore.
        self._used -= 1

    def rest(self) -> None:
        while self._in_hand:
            self._in_hand -= 1
            self._semaphore.release()

    def reset(self) -> None:
        self._in_hand = 0
        self._asked = False

    def _granted(self) -> None:
        # Inside a slot's release: start nothing here (F6).
        self._asked = False
        self._in_hand += 1
        self._wake()


def _nothing() -> None:
    """A slot is taken by acquiring with a callback."""
