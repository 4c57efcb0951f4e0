"""What the world and the store must agree on."""

from __future__ import annotations

from collections.abc import Iterator

from .calls import HOST, Reply
from .effects import Effect
from .stored import Stored
from .world import FRESH, HELD, Move, State, World, alive


def wrong_between(world: World, state: State, stored: Stored) -> Iterator[str]:
    """What the world and the store do not agree on."""
    for name, fate in zip(sorted(world.attempts), state.fates, strict=True):
        if (fate.state == HELD) != (name in stored.records):
            yield f"invariant 2: {name} is {fate.state}, the store has it: {name in stored.records}"
        at_broker = (*state.queue, *(stored.unacked if world.one_redis else _copies(state)))
        if fate.state == FRESH and name not in at_broker:
            yield f"invariant 2: {name} was never accepted and is not at the broker any more"
        runs = [run for worker in state.workers for run in worker.runs if run.attempt == name]
        live = [run for run in runs if run.token == stored.tokens.get(name)]
        if len(live) > 1:
            yield f"invariant 2: {name} runs twice under one token"
    for key, holders in stored.permits.items():
        capacity = max(attempt.capacity for attempt in world.attempts.values() if attempt.key == key)
        rightly = [name for name in holders if (name, stored.tokens.get(name)) not in state.doubtful]
        if len(rightly) > capacity:
            yield f"invariant 1: permits of {key} are held for {rightly}, its capacity is {capacity}"
    for attempt, token in state.unstored:
        if stored.tokens.get(attempt, token) > token:
            yield f"C12: {attempt} is leased anew, and its owner counts on it rightly"


def wrong_with_change(
    world: World, state: State, move: Move, reply: Reply, effect: Effect, after: Stored
) -> Iterator[str]:
    """What a call did that some worker cannot live with."""
    tokens = [token for worker in state.workers for _, token in (*worker.book, *(run[:2] for run in worker.runs))]
    told = [*reply.grants, *([(move.asked.attempt, reply.token)] if move.asked and reply.status == "RUN" else [])]
    for attempt, token in told if hears(move) else ():
        if after.tokens.get(attempt) != token:
            yield f"F1: a worker is told to run {attempt} under a token that is not its own any more"
    if hears(move) and reply.status == "UNKNOWN":
        yield "F10: a worker that lives is not known"
    if hears(move) and reply.status == "OLD":
        yield "F1: a worker's newest call is called old"
    for worker in state.workers:
        for lease in set(effect.given_back) & set(worker.book):
            yield f"F1: {lease[0]} was given back under the worker that runs it"
    if any(token <= max(tokens, default=0) for _, token in effect.granted):
        yield "F26: a new token is not higher than one that a worker still has"
    brought = (move.asked.attempt, move.asked.token) if move.asked and reply.status == "LOST" else ("", 0)
    if brought in state.unstored and not after.remembers(brought[0]):
        yield f"C12: {move.asked.attempt} was not adopted, and its owner counts on it rightly"
    found_gone = world.witnesses and move.what == "arrive" and _is_gone(state, move, after)
    if found_gone and effect.granted and reply.grants:
        yield "F25: something was handed on to a worker that was found gone"
    yield from _crowded(world, state, effect, after)


def _is_gone(state: State, move: Move, after: Stored) -> bool:
    assert move.asked is not None
    return move.asked.worker not in {*alive(state), *after.entries.get(f"n:{HOST}", ())}


def hears(move: Move) -> bool:
    """Whether somebody waits for the answer."""
    return move.slot >= 0 and move.how != "unheard"


def _crowded(world: World, state: State, effect: Effect, after: Stored) -> Iterator[str]:
    """C12: nothing starts on top of what the store has lost and its owners still run."""
    for attempt, _ in effect.granted:
        key, capacity = world.attempts[attempt].key, world.attempts[attempt].capacity
        lost = {name for name, _ in state.unstored if world.attempts[name].key == key}
        if key and len(lost | after.permits.get(key, frozenset())) > capacity:
            yield f"C12: {attempt} starts beside what its owners run and the store has lost"


def _copies(state: State) -> list[str]:
    return [copy for worker in state.workers for copy in worker.copies]
