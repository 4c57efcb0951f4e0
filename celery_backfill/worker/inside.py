"""Where a task's code runs: told there that its lease is lost, and in a pool's process, stopped if it is strict."""

from __future__ import annotations

from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Self

from .. import ledger
from ..errors import LeaseLostError
from ..ledger import Row
from ..run import Lease, running_here
from .deadman import DeadMansTimer
from .notice import Interruptible, install_in_child, interruptible
from .orphans import guard_against_orphanhood

LONGEST_PAUSE_SECONDS = 0.25

_inside: dict[int, Interruptible] = {}


def interrupt(token: int) -> bool:
    """Tell the run of that token in this process that its lease is lost; False where its code does not run."""
    found = _inside.get(token)
    if found is not None:
        found.interrupt(LeaseLostError)
    return found is not None


class Inside:
    """The context that one run's code is in."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._interruptible: Interruptible | None = None
        self._deadline: SelfStop | None = None

    def __enter__(self) -> Self:
        lease = self._lease
        found = self._interruptible = interruptible()
        if lease.margin is not None and lease.row is not None and ledger.in_child():
            self._deadline = SelfStop(lease.row, lease.margin, found)
        _inside[lease.token] = found
        found.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Nothing of this run is left. Called again where nothing can break it off, as may happen in ``__exit__``."""
        if self._interruptible is not None:
            self._interruptible.__exit__()
        _inside.pop(self._lease.token, None)
        if self._deadline is not None:
            self._deadline.leave()


class SelfStop:
    """Stops a strict run in its own process: softly at its deadline, and by a timer of the kernel ``margin`` later.

    The timer also fires while the process is stopped or its interpreter is held by C code, so that such a run never
    outlives its lease. C code that lets no thread run for that long is stopped even though the lease was renewed.
    """

    def __init__(self, row: Row, margin: float, run: Interruptible) -> None:
        self._row, self._margin, self._run = row, margin, run
        self._pause = min(LONGEST_PAUSE_SECONDS, margin / 2)
        self._lock = Lock()
        self._left = Event()
        _timer.arm(row.until + margin)
        Thread(target=self._watch, name="backfill-deadline", daemon=True).start()

    def leave(self) -> None:
        """The run's code has ended."""
        with self._lock:
            self._left.set()
            _timer.disarm()

    def _watch(self) -> None:
        while not self._left.wait(self._pause):
            with self._lock:
                if self._left.is_set():
                    return
                _timer.arm(self._row.until + self._margin)
                if self._row.lost or monotonic() >= self._row.until:
                    self._run.interrupt(LeaseLostError)


_timer = DeadMansTimer()


def prepare_child(**_: Any) -> None:
    """At the start of each process of a worker's pool."""
    if ledger.shared is not None and ledger.in_child():
        guard_against_orphanhood(ledger.shared.owner_pid)
        install_in_child(_loss)


def _loss() -> LeaseLostError | None:
    run = running_here()
    if run is None:
        return None
    lease = run.lease
    if lease.lost or (lease.margin is not None and not lease.remaining):
        return LeaseLostError(f"attempt {lease.attempt}: the lease of token {lease.token} is lost")
    return None
