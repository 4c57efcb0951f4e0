"""The worker's own thread: renews its leases, recovers those that ran out, and wakes the gate.

Celery's timers stop while a pool drains, so renewals have a thread and a connection of their own, alive until the pool
has stopped and the last run has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from threading import Condition, Thread
from time import monotonic
from typing import Protocol

from ..errors import StoreChangedError, StoreUnavailableError
from ..events import emit, logger
from ..leases.store import Admission, Epoch, LeaseStore, Sweep
from .timing import Timing

GRAVE_SECONDS = 0.05


class Leaseholder(Protocol):
    """What the heartbeat keeps alive: the gate and its book, as far as the heartbeat needs them."""

    def snapshot(self) -> tuple[int, list[tuple[str, int]]]: ...
    def records(self) -> Iterator[tuple[int, int, Admission]]: ...
    def renewed(self, leases: Sequence[tuple[str, int]], sent: float) -> None: ...
    def lost(self, leases: Sequence[tuple[str, int]]) -> None: ...
    def enforce(self) -> None: ...
    def tick(self) -> None: ...
    def back(self) -> None: ...
    def lose_store(self, error: StoreUnavailableError) -> None: ...
    @property
    def held(self) -> int: ...
    @property
    def highest_token(self) -> int: ...
    @property
    def waits_for_children(self) -> bool: ...


class Heartbeat:
    """Beats at least once a sweep. ``identity`` is what witnesses on this host know the worker by; ``is_gone`` judges
    another's.
    """

    def __init__(
        self,
        *,
        store: LeaseStore,
        worker: str,
        holder: Leaseholder,
        tasks: tuple[str, ...],
        timing: Timing,
        identity: str = "",
        is_gone: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._store, self._worker, self._holder, self._tasks = store, worker, holder, tasks
        self._timing, self._identity, self._is_gone = timing, identity, is_gone
        self._joined = ""
        self._gone: list[str] = []
        self._renew_at = 0.0
        self._wake_at = 0.0
        self._changed = Condition()
        self._stopped = False
        self._at_end: Callable[[], None] | None = None
        self._thread = Thread(target=self._loop, name="backfill-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Beat no more; waits for a beat under way, and has the worker forgotten where it holds nothing any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if not self._holder.held:
            self._leave()

    def stop_when_empty(self, then: Callable[[], None]) -> None:
        """Beat until the last lease is settled, and call ``then``; or for as long as the process lives."""
        with self._changed:
            self._at_end = then

    def due(self, seconds: float) -> None:
        """Beat again in ``seconds``, if that is sooner than it would."""
        with self._changed:
            wanted = monotonic() + seconds
            if wanted < self._wake_at:
                self._wake_at = wanted
                self._changed.notify()

    def beat(self) -> None:
        """Join when the store is another one, renew when it is time, sweep, wake the gate, stop what may not go on."""
        try:
            if self._store.epoch.name == Epoch.NONE:
                self._join()
            if monotonic() >= self._renew_at:
                self.renew()
            due_in = self._sweep()
        except StoreUnavailableError as error:
            if isinstance(error, StoreChangedError):
                self._store.epoch.leave()
            self._holder.lose_store(error)
        else:
            self._holder.back()
            self._holder.tick()
            if due_in is not None:
                self.due(due_in)
        self._holder.enforce()

    def renew(self) -> None:
        """Renew every lease held. Raises ``StoreUnavailableError``."""
        sent = monotonic()
        last_nonce, held = self._holder.snapshot()
        known, lost = self._store.renew(self._worker, last_nonce, held)
        self._renew_at = sent + self._timing.renew_every
        if not known:
            # What the store knew of this worker has run out.
            self._store.epoch.leave()
        gone = set(lost)
        self._holder.renewed([lease for lease in held if lease[0] not in gone], sent)
        self._holder.lost([lease for lease in held if lease[0] in gone])

    def _join(self) -> None:
        """Join the store's epoch, after bringing it every lease that it may not know of (F26)."""
        epoch, sent = self._store.greet(), monotonic()
        kept: list[tuple[str, int]] = []
        lost: list[tuple[str, int]] = []
        for token, stalls, record in self._holder.records():
            adopted = self._store.adopt(self._worker, token, record, epoch=epoch, joined=self._joined, stalls=stalls)
            (kept if adopted else lost).append((record.attempt, token))
        safe_in = self._store.join(
            self._worker,
            self._tasks,
            epoch=epoch,
            joined=self._joined,
            identity=self._identity,
            seen=self._holder.highest_token,
        )
        if self._joined and self._joined != epoch:
            facts = {"leases_kept": len(kept), "leases_lost": len(lost), "starts_again_in_seconds": safe_in}
            emit("store_changed", logging.WARNING, **facts)
        self._store.epoch.name = self._joined = epoch
        self._holder.renewed(kept, sent)
        self._holder.lost(lost)

    def _sweep(self) -> float | None:
        """Take back what others have lost; seconds until something scheduled is due."""
        sweep: Sweep = self._store.recover(gone=self._gone)
        for found in sweep.recovered:
            level = logging.ERROR if found.verdict == "POISON" else logging.WARNING
            emit("lease_recovered", level, witnessed=found.worker in self._gone, **found._asdict())
        others = [name for name in sweep.neighbours if name != self._worker]
        self._gone = [name for name in others if self._is_gone(sweep.neighbours[name])]
        if self._gone:
            self.due(0.0)
        return sweep.due_in

    def _leave(self) -> None:
        try:
            self._store.leave(self._worker)
        except StoreUnavailableError:
            logger.debug("the store is away; it forgets this worker by itself")

    def _loop(self) -> None:
        while not self._stopped:
            self._wake_at = monotonic() + self._timing.sweep_every
            try:
                self.beat()
            except Exception:
                logger.exception("the heartbeat failed once; it goes on")
            if self._at_end is not None and not self._holder.held:
                self._leave()
                self._at_end()
                return
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
