"""How many more tasks the pool can run now, counted by the gate on every pool.

Only prefork counts its slots itself, in a semaphore that plain tasks take too; there a slot is taken from it and kept
in hand until something runs in it. A broker reconnect resets that semaphore while children still run, so the gate's own
count bounds it (F7).

With autoscaling a slot may be one that the pool does not have yet: the autoscaler looks at the requests there are, so
the gate has to take some first (F9).
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

from celery.worker import state

from ..task import BackfillTask
from .request import LeasedRequest


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


def slots_of(worker: Any, wake: Callable[[], None]) -> Slots:
    """The slots of a worker's pool; ``wake`` wakes its gate."""
    size = pool_size(worker.pool)
    most = worker.max_concurrency or 0
    if counts_in_semaphore(worker):
        return SemaphoreSlots(worker.semaphore, size, wake, most=most)
    if worker.pool.is_green:
        # Grows in a moment, while what was given to it waits.
        return CountedSlots(lambda: max(size(), most), _plain_tasks_running(worker.app))
    return CountedSlots(size, _plain_tasks_running(worker.app))


def counts_in_semaphore(worker: Any) -> bool:
    """Whether the pool's slots are Celery's semaphore; then it tells of every end in the event loop's thread."""
    return bool(worker.process_task == worker._process_task_sem)


def pool_size(pool: Any) -> Callable[[], int]:
    """How many tasks a pool can run at once now, as a function: pools are made larger and smaller while they run."""
    if type(pool).__module__ == "celery.concurrency.gevent":
        # Older Celery's ``num_processes`` is how many run, and its ``limit`` stays when the pool grows.
        return lambda: int(pool._pool.size if pool._pool is not None else pool.limit)
    return lambda: int(pool.num_processes)


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
    """Slots of a prefork pool, taken from Celery's own semaphore. Used from the event loop's thread only.

    ``size`` is how many processes the pool has now, ``most`` how many it may have with autoscaling (else 0).
    """

    def __init__(self, semaphore: Any, size: Callable[[], int], wake: Callable[[], None], *, most: int = 0) -> None:
        self._semaphore, self._size, self._wake, self._most = semaphore, size, wake, most
        self._used = 0
        self._in_hand = 0
        #: Reserved slots of processes that are yet to come.
        self._owed = 0
        self._asked = False

    def reserve(self) -> bool:
        self._pay()
        if self._used >= self._limit():
            return False
        if self._in_hand:
            self._in_hand -= 1
        elif self._semaphore.value > 0:
            self._semaphore.acquire(_nothing)
        elif self._owed < self._most - self._size():
            self._owed += 1
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
        if self._owed:
            self._owed -= 1
        else:
            self._in_hand += 1

    def ended(self) -> None:
        # The pool itself has released its semaphore.
        self._used -= 1

    def rest(self) -> None:
        self._pay()
        while self._in_hand:
            self._in_hand -= 1
            self._semaphore.release()

    def reset(self) -> None:
        self._in_hand = self._owed = 0
        self._asked = False

    def _limit(self) -> int:
        return max(self._size(), self._most)

    def _pay(self) -> None:
        """The pool has grown, or something else has ended: those slots are real now."""
        while self._owed and (self._in_hand or self._semaphore.value > 0):
            self._owed -= 1
            if self._in_hand:
                self._in_hand -= 1
            else:
                self._semaphore.acquire(_nothing)

    def _granted(self) -> None:
        # Inside a slot's release: start nothing here (F6).
        self._asked = False
        self._in_hand += 1
        self._wake()


def _nothing() -> None:
    """A slot is taken by acquiring with a callback."""


def _plain_tasks_running(app: Any) -> Callable[[], int]:
    """How many tasks run in the pool that are not leased."""
    if all(isinstance(task, BackfillTask) for task in app.tasks.values()):
        return lambda: 0
    return lambda: sum(not isinstance(request, LeasedRequest) for request in tuple(state.active_requests))
