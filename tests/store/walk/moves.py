"""What can happen next in a state of a world."""

from __future__ import annotations

from collections.abc import Iterator

from .calls import HOST, NOW, Asked
from .losses import can_be_safe, orphans, times_pass
from .stored import Stored
from .world import Move, State, Worker, World, alive, name_of


def moves(world: World, state: State, stored: Stored) -> Iterator[Move]:
    """All that can happen next."""
    for slot in range(len(state.workers)):
        yield from _broker_moves(world, state, slot)
        if not state.cut:
            yield from _workers_calls(world, state, stored, slot)
        if state.budget.crashes:
            yield Move("crash", slot, how="fault")
    if state.cut:
        yield Move("greet", asked=Asked("greet", young=state.young), how="free")
    else:
        yield from (
            Move("arrive", asked=late, how="fault") for late in sorted(set(state.late)) if _is_next(state, late)
        )
        yield from _sweeps(world, state, stored)
        yield from _times_moves(world, state, stored)
    if world.one_redis:
        yield from _restores(state, stored)
    if not state.cut:
        yield from _losses(state)


def _workers_calls(world: World, state: State, stored: Stored, slot: int) -> Iterator[Move]:
    worker = state.workers[slot]
    name = name_of(slot, worker.generation)
    for what, asked in _joining(state, worker, name) if worker.out else _calls(world, state, stored, worker, name):
        yield Move(what, slot, asked)
        if state.budget.unheard and world.may_lose(asked):
            yield Move(what, slot, asked, "unheard")
        if what == "admit" and not world.one_redis and state.budget.redeliveries:
            yield Move(what, slot, asked, "unacked")


def _is_next(state: State, asked: Asked) -> bool:
    """The halves of a pair went over one connection: they arrive in their order."""
    first = (asked.worker, asked.nonce - 1)
    return not asked.shares or all(
        (other.worker, other.nonce) != first or other.verb == "renew" for other in state.late
    )


def _broker_moves(world: World, state: State, slot: int) -> Iterator[Move]:
    copies, busy = state.workers[slot].copies, bool(state.workers[slot].following.verb)
    if len(copies) < world.prefetch:
        yield from (Move("deliver", slot, attempt=attempt) for attempt in state.queue)
    if copies and not busy and not world.one_redis and state.budget.redeliveries:
        yield Move("reconnect", slot, how="fault")


def _joining(state: State, worker: Worker, name: str) -> Iterator[tuple[str, Asked]]:
    """Greet, adopt every lease, join: the heartbeat does one after the other, and begins anew when one fails."""
    if not worker.greeted:
        yield "greet", Asked("greet", young=state.young)
        return
    epoch = Asked("join", name, epoch=worker.greeted, joined=worker.joined)
    stalls = {run[:2]: run.stalls for run in worker.runs}
    for attempt, token in sorted(set(worker.book) - {*worker.kept, *worker.refused})[:1]:
        told = stalls[attempt, token]
        yield "adopt", epoch._replace(verb="adopt", attempt=attempt, token=token, stalls=told)
        return
    yield "join", epoch


def _calls(world: World, state: State, stored: Stored, worker: Worker, name: str) -> Iterator[tuple[str, Asked]]:
    for what, asked in (*_numbered_calls(world, state, worker, name), *_renewals(worker, name, stored)):
        yield what, asked._replace(epoch=worker.joined)
    if state.budget.stops and not worker.runs:
        yield "leave", Asked("leave", name)


def _numbered_calls(world: World, state: State, worker: Worker, name: str) -> Iterator[tuple[str, Asked]]:
    def numbered(asked: Asked) -> Asked:
        return asked._replace(worker=name, nonce=worker.nonce_for(asked))

    if worker.following.verb:
        yield "follow", worker.following
        return
    if len(worker.runs) < world.slots:
        for attempt in sorted(set(worker.copies)):
            yield "admit", numbered(Asked("admit", attempt=attempt))
        yield "claim", numbered(Asked("claim", want=world.claims))
    for asked in _settlements(world, state, worker):
        yield "settle", numbered(asked)
        for attempt in sorted(set(worker.copies)) if world.pairs and asked.outcome != "back" else ():
            yield f"settle before {attempt}", asked._replace(worker=name, nonce=worker.nonce_for_pair(asked, attempt))


def _settlements(world: World, state: State, worker: Worker) -> Iterator[Asked]:
    for run in sorted(set(worker.runs)):
        for outcome in [run.ended] if run.ended else _outcomes(world, state, run.attempt):
            for want in world.wants:
                yield Asked("settle", attempt=run.attempt, token=run.token, outcome=outcome, want=want)


def _renewals(worker: Worker, name: str, stored: Stored) -> Iterator[tuple[str, Asked]]:
    """The heartbeat has a connection of its own: a renewal may come between the two calls of a pair."""
    if worker.book or name in stored.held:
        yield "renew", Asked("renew", name, worker.last, held=worker.book)


def _outcomes(world: World, state: State, attempt: str) -> list[str]:
    spent = state.fates[sorted(world.attempts).index(attempt)].retries >= world.retries
    return [outcome for outcome in world.outcomes if not (spent and outcome in ("retry", "later"))]


def _sweeps(world: World, state: State, stored: Stored) -> Iterator[Move]:
    """Anybody who has joined sweeps, as often as you like; who has not noticed yet that it has to join tries to."""
    unaware = [at for at, worker in enumerate(state.workers) if not worker.out and world.epochs]
    joined = [at for at in unaware if state.workers[at].joined == stored.epoch]
    yield from (
        Move("recover", slot, Asked("recover", epoch=state.workers[slot].joined))
        for slot in unaware
        if slot not in joined
    )
    if world.epochs and not joined:
        return
    epoch = stored.epoch if world.epochs else 0
    if any(deadline <= NOW for deadline in stored.leases.values()):
        yield Move("recover", asked=Asked("recover", epoch=epoch), how="free")
    for name in sorted(set(stored.entries.get(f"n:{HOST}", ())) - alive(state)):
        yield Move("witness", asked=Asked("recover", gone=name, epoch=epoch), how="free")


def _times_moves(world: World, state: State, stored: Stored) -> Iterator[Move]:
    lasts = any(deadline > NOW for deadline in stored.leases.values())
    if state.budget.expiries and (lasts or state.unstored):
        yield Move("a lease passes", how="fault")
    if state.budget.gaps and lasts:
        yield Move("the store is away", how="fault")
    unsafe = stored.of_epoch("safe_at") > NOW
    if times_pass(world, state, stored) and (
        unsafe or any(stored.leases[name] > NOW for name in orphans(state, stored))
    ):
        yield Move("the leases of the gone pass", how="free")
    if can_be_safe(world, state, stored):
        yield Move("it is safe soon", how="free")
    if any(due > NOW for due in stored.sched.values()):
        yield Move("a moment passes", how="free")


def _losses(state: State) -> Iterator[Move]:
    if state.budget.restarts:
        yield Move("restart", how="fault")
    if state.budget.rollbacks:
        yield from (Move("restart with older data", attempt=str(at), how="fault") for at in range(len(state.priors)))
    if state.budget.losses:
        yield Move("lose all data", how="fault")


def _restores(state: State, stored: Stored) -> Iterator[Move]:
    """The broker may restore at any time what is unacked; it will when nobody is left who has it."""
    for attempt in sorted(stored.unacked):
        orphan = all(attempt not in worker.copies for worker in state.workers)
        if orphan or state.budget.redeliveries:
            yield Move("restore", attempt=attempt, how="free" if orphan else "fault")
