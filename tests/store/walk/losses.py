"""What a crash, a loss of data and the passing of time make of a state."""

from __future__ import annotations

from collections.abc import Iterable

from celery_backfill.leases.store import JOIN_SECONDS

from .calls import GAP_MS, HOST, LEASE_MS, NOW, TASK
from .stored import Stored
from .world import FRESH, HELD, LOST, Fate, Lease, State, Worker, World, alive, name_of, with_worker

SOON_MS = round(JOIN_SECONDS * 1000)


def orphans(state: State, stored: Stored) -> tuple[str, ...]:
    """The leases of workers that are gone; everybody else may renew while they run out."""
    living = alive(state)
    return tuple(attempt for attempt in sorted(stored.leases) if stored.records[attempt]["worker"] not in living)


def absent(world: World, state: State, stored: Stored) -> list[int]:
    """Workers that live and have not joined the store's epoch: they cannot renew."""
    if not world.epochs:
        return []
    return [at for at, worker in enumerate(state.workers) if worker.out or worker.joined != stored.epoch]


def times_pass(world: World, state: State, stored: Stored) -> bool:
    """Whether a lease may pass without one running out whose owner lives."""
    return not any(state.workers[slot].book for slot in absent(world, state, stored))


def can_be_safe(world: World, state: State, stored: Stored) -> bool:
    """Whether the shortest wait for new work may end.

    Of those who alone know that data were lost, at least one comes in that time: it is what that time is for.
    """
    if not NOW < stored.of_epoch("safe_at") <= NOW + SOON_MS:
        return False
    unknown = [slot for slot in absent(world, state, stored) if _name(state, slot) not in stored.seen]
    return state.told or not any(set(state.workers[slot].book) & set(state.unstored) for slot in unknown)


def _name(state: State, slot: int) -> str:
    return name_of(slot, state.workers[slot].generation)


# Time


def ripened(stored: Stored, attempts: Iterable[str]) -> Stored:
    """The leases of these, and when they are due, are over."""
    for name in ("leases", "sched"):
        times = {**stored.entries.get(name, {})}
        if over := times.keys() & set(attempts):
            stored = stored.having(name, ("zset", _flat({**times, **dict.fromkeys(over, str(NOW - 1))})))
    return stored


def lease_passed(state: State, stored: Stored) -> Stored:
    """Those who live have been heard of meanwhile."""
    stored = _aged(stored).noting("pulse", at=NOW)
    return stored.having("workers", ("zset", _flat(dict.fromkeys(stored.seen & alive(state), str(NOW)))))


def silence_passed(stored: Stored) -> Stored:
    """Nobody has been heard of for a lease."""
    return _aged(stored).noting("pulse", at=NOW - GAP_MS)


def _aged(stored: Stored) -> Stored:
    born = min(stored.of_epoch("born"), NOW - LEASE_MS)
    gap = min(stored.of_pulse("gap"), NOW - LEASE_MS)
    return stored.noting("epoch", born=born, soon=0, safe_at=0).noting("pulse", gap=gap)


def soon_passed(stored: Stored) -> Stored:
    """The time has passed in which live workers come back."""
    until = {field: stored.of_epoch(field) for field in ("soon", "safe_at")}
    return stored.noting("epoch", **{field: 0 if time <= NOW + SOON_MS else time for field, time in until.items()})


def _flat(pairs: dict[str, str]) -> list[str]:
    return [value for pair in sorted(pairs.items()) for value in pair]


# Workers


def crashed(world: World, state: State, stored: Stored, slot: int) -> tuple[State, Stored]:
    """A worker is gone, and another is started in its place."""
    if not world.one_redis:
        state = nacked(state, slot)
    worker = state.workers[slot]
    if worker.following.verb:
        state = state._replace(late=(*state.late, worker.following))
    unstored = tuple(lease for lease in state.unstored if lease not in worker.book)
    fresh = Worker(worker.generation + 1, out=world.epochs)
    state = with_worker(state, slot, fresh)._replace(unstored=unstored)
    if not world.epochs:
        stored = _known(world, stored, name_of(slot, fresh.generation))
    return state, stored


def _known(world: World, stored: Stored, name: str) -> Stored:
    stored = stored.having(f"k:{name}", ("set", [TASK]))
    host = stored.entries.get(f"n:{HOST}", {})
    return stored.having(f"n:{HOST}", ("hash", _flat({**host, name: ""}))) if world.witnesses else stored


def nacked(state: State, slot: int) -> State:
    """A broker other than the store's Redis has what a connection had not acked again."""
    worker = state.workers[slot]
    queue = (*state.queue, *worker.copies)
    return with_worker(state, slot, worker._replace(copies=()))._replace(queue=queue)


# The server


def restarted(state: State, stored: Stored) -> tuple[State, Stored]:
    """Its data are as they were; no connection is."""
    return state._replace(late=(), cut=True, young=True), stored.noting("epoch", run="another server")


def rolled_back(state: State, stored: Stored, at: int) -> tuple[State, Stored]:
    """It is restarted, and knows nothing of the last calls."""
    prior = state.priors[at]
    older = Stored(prior.text)
    rightly = set(_leases(state, stored))
    unstored = tuple(sorted(rightly - older.tokens.items()))
    doubtful = tuple(sorted(older.tokens.items() - rightly))
    fates = tuple(map(_fate_before, prior.fates, state.fates))
    return restarted(state._replace(unstored=unstored, doubtful=doubtful, fates=fates, priors=()), older)


def _fate_before(then: Fate, now: Fate) -> Fate:
    """The broker does not forget: what it was told to forget since then is nowhere."""
    return Fate(LOST) if then.state == FRESH and now.state != FRESH else then


def emptied(world: World, state: State, stored: Stored) -> tuple[State, Stored]:
    """What the store held is lost with its data; so is what the broker held, if that is the same Redis."""
    gone = {HELD, FRESH} if world.one_redis else {HELD}
    # Nothing tells any more that it has ended: the broker's copy, or who asked to settle it and was not answered.
    again = {*state.queue, *(name for worker in state.workers for name in (*worker.copies, *dict(worker.book)))}
    fates = tuple(
        Fate(LOST) if fate.state in gone or name in again else fate
        for name, fate in zip(sorted(world.attempts), state.fates, strict=True)
    )
    queue = () if world.one_redis else state.queue
    unstored = _leases(state, stored)
    state = state._replace(fates=fates, queue=queue, unstored=unstored, doubtful=(), told=False, priors=())
    return (state, Stored("{}")) if world.flushed else restarted(state, Stored("{}"))


def _leases(state: State, stored: Stored) -> tuple[Lease, ...]:
    """What those who live count on, and rightly so."""
    sound = {*stored.tokens.items(), *state.unstored}
    return tuple(sorted({lease for worker in state.workers for lease in worker.book} & sound))
