"""The worker's own thread: renews its leases, recovers those that ran out, and wakes the gate.

Celery's timers stop while a pool drains, so renewals have a thread and a connection of their own, alive until the pool
has stopped.
"""

from __future__ import annotations

import logging
from threading import Condition, Thread
from time import monotonic
from typing import Protocol

from ..errors import StoreUnavailableError
from ..events import emit, logger
from ..leases.store import LeaseStore
from ..settings import RENEWALS_PER_LEASE

SWEEP_SECONDS = 1.0
GRAVE_SECONDS = 0.05


class Leaseholder(Protocol):
    """What the heartbeat keeps alive: the gate and its book, as far as the heartbeat needs them."""

    def snapshot(self) -> tuple[int, list[tuple[str, int]]]: ...
    def lost(self, leases: list[tuple[str, int]]) -> None: ...
    def tick(self) -> None: ...
    def back(self) -> None: ...
    @property
    def waits_for_children(self) -> bool: ...


class Heartbeat:
    """Beats once a second. ``lease_seconds`` is the shortest lease of the worker's tasks; it is renewed three times."""

    def __init__(
        self, *, store: LeaseStore, worker: str, holder: Leaseholder, tasks: tuple[str, ...], lease_seconds: float
    ) -> None:
        self._store, self._worker, self._holder, self._tasks = store, worker, holder, tasks
        self._renew_every = lease_seconds / RENEWALS_PER_LEASE
        self._renew_at = 0.0
        self._wake_at = 0.0
        self._changed = Condition()
        self._stopped = False
        self._thread = Thread(target=self._loop, name="backfill-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Beat no more; waits for a beat under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def due(self, seconds: float) -> None:
        """Beat again in ``seconds``, if that is sooner than it would."""
        with self._changed:
            wanted = monotonic() + seconds
            if wanted < self._wake_at:
                self._wake_at = wanted
                self._changed.notify()

    def beat(self) -> None:
        """Renew when it is time, recover, wake the gate. One that finds no store says nothing: the gate has said it."""
        try:
            if monotonic() >= self._renew_at:
                self.renew()
            due_in = self._recover()
        except StoreUnavailableError:
            return
        self._holder.back()
        self._holder.tick()
        if due_in is not None:
            self.due(due_in)

    def renew(self) -> None:
        """Renew every lease held. Raises ``StoreUnavailableError``."""
        sent = monotonic()
        last_nonce, held = self._holder.snapshot()
        known, lost = self._store.renew(self._worker, last_nonce, held)
        self._renew_at = sent + self._renew_every
        if not known:
            self._store.register(self._worker, self._tasks)
        if lost:
            tokens = dict(held)
            self._holder.lost([(attempt, tokens[attempt]) for attempt in lost])

    def _recover(self) -> float | None:
        due_in, recovered = self._store.recover()
        for found in recovered:
            level = logging.ERROR if found.verdict == "POISON" else logging.WARNING
            emit("lease_recovered", level, **found._asdict())
        return due_in

    def _loop(self) -> None:
        while not self._stopped:
            self._wake_at = monotonic() + SWEEP_SECONDS
            try:
                self.beat()
            except Exception:
                logger.exception("the heartbeat failed once; it goes on")
            self._rest()

    def _rest(self) -> None:
        with self._changed:
            while not self._stopped:
                at = self._wake_at
                if self._holder.waits_for_children:
                    at = min(at, monotonic() + GRAVE_SECONDS)
                left = at - monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return
