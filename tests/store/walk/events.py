"""What a move makes of a state, given what the server made of its call."""

from __future__ import annotations

from collections.abc import Iterator

from .calls import NOW, TASK, Asked, Reply
from .effects import Effect
from .stored import Stored
from .world import FRESH, HELD, LOST, NOTHING, Fate, Move, Run, State, Worker, World, name_of, orphans

Book = tuple[tuple[str, int], ...]


def first_state(world: World) -> tuple[State, Stored]:
    """All messages at the broker, all workers at rest and known to the store."""
    names = tuple(sorted(world.attempts))
    stored = Stored(_empty(world.workers, [0] * world.workers))
    workers = (Worker(),) * world.workers
    return State(stored.text, workers, (), names, (Fate(),) * len(names), world.budget), stored


def _empty(workers: int, generations: list[int]) -> str:
    known = [f'"k:{name_of(slot, generations[slot])}": ["set", ["{TASK}"]]' for slot in range(workers)]
    return "{" + ", ".join(known) + "}"


def happen(world: World, state: State, stored: Stored, move: Move) -> tuple[State, Stored, tuple[str, ...]]:
    """A move without an answer: the state, what the server holds, and whose times have come (see ``fold``)."""
    budget, text = state.budget, stored
    passed: tuple[str, ...] = ()
    if move.what == "deliver":
        text = _delivered(world, stored, move.attempt)
        worker = state.workers[move.slot]
        state = _with(state, move.slot, worker._replace(copies=(*worker.copies, move.attempt)))
        state = state._replace(queue=tuple(name for name in state.queue if name != move.attempt))
    elif move.what == "reconnect":
        state, budget = _nacked(state, move.slot), budget.less(redeliveries=1)
    elif move.what == "crash":
        state, text = _crashed(world, state, stored, move.slot)
        budget = budget.less(crashes=1)
    elif move.what == "restore":
        text = _unacked(stored, stored.unacked - {move.attempt})
        state = state._replace(queue=(*state.queue, move.attempt))
        budget = budget.less(redeliveries=0 if move.how == "free" else 1)
    elif move.what == "a lease passes":
        budget, passed = budget.less(expiries=1), (*sorted(stored.leases), *sorted(stored.sched))
    elif move.what == "the leases of the gone pass":
        passed = (*orphans(state, stored), *sorted(stored.sched))
    elif move.what == "a moment passes":
        passed = tuple(sorted(stored.sched))
    elif move.what == "lose all data":
        state, text = _lost(world, state), _emptied(world, state, stored)
        budget = budget.less(losses=1)
    else:
        assert move.how == "unheard"
        assert move.asked is not None
        state, budget = _unheard(state, move), budget.less(unheard=1)
    return state._replace(budget=budget), text, passed


def answer(world: World, state: State, move: Move, reply: Reply, effect: Effect) -> State:
    """A call that was carried out; the worker hears of it unless it has moved on or never will."""
    state = state._replace(fates=_fates(world, state, effect))
    assert move.asked is not None
    if move.what == "arrive":
        late = list(state.late)
        late.remove(move.asked)
        return state._replace(late=tuple(late))
    if move.slot < 0 or move.what == "renew":
        return state
    worker = state.workers[move.slot]
    if move.what.startswith("settle before"):
        return _with(state, move.slot, _half_heard(worker, move, reply))
    state = _with(state, move.slot, _hears_all(worker, move.asked, reply))
    if move.how == "unacked":
        budget = state.budget.less(redeliveries=1)
        return state._replace(queue=(*state.queue, move.asked.attempt), budget=budget)
    return state


def hears(move: Move) -> bool:
    """Whether somebody waits for the answer."""
    return move.slot >= 0 and move.how != "unheard"


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


def wrong_with_change(state: State, move: Move, reply: Reply, effect: Effect, after: Stored) -> Iterator[str]:
    """What a call did that some worker cannot live with."""
    tokens = [token for worker in state.workers for _, token in (*worker.book, *(run[:2] for run in worker.runs))]
    told = [*reply.grants, *([(move.asked.attempt, reply.token)] if move.asked and reply.status == "RUN" else [])]
    for attempt, token in told if hears(move) else ():
        if after.tokens.get(attempt) != token:
            yield f"F1: a worker is told to run {attempt} under a token that is not its own any more"
    if hears(move) and reply.status == "OLD":
        yield "F1: a worker's newest call is called old"
    for worker in state.workers:
        for lease in set(effect.given_back) & set(worker.book):
            yield f"F1: {lease[0]} was given back under the worker that runs it"
    if any(token <= max(tokens, default=0) for _, token in effect.granted):
        yield "F26: a new token is not higher than one that a worker still has"


def _fates(world: World, state: State, effect: Effect) -> tuple[Fate, ...]:
    ended = dict(effect.ended)
    fates = []
    for name, fate in zip(sorted(world.attempts), state.fates, strict=True):
        if name == effect.accepted:
            if fate.state not in (FRESH, LOST):
                raise AssertionError(f"F3: {name} was accepted again after it was {fate.state}")
            fate = Fate(HELD)
        if name == effect.retried:
            fate = fate._replace(retries=fate.retries + 1)
        if name in ended:
            fate = Fate(ended[name])
        fates.append(fate)
    return tuple(fates)


def _half_heard(worker: Worker, move: Move, reply: Reply) -> Worker:
    """The settle of a pair is answered; its admission follows. ``doubt`` stands for the settle meanwhile."""
    settle = move.asked
    assert settle is not None
    admission = Asked("admit", settle.worker, settle.nonce + 1, move.what[-1], shares=True)
    return worker._replace(following=admission, doubt=settle, granted=reply.grants)


def _hears_all(worker: Worker, asked: Asked, reply: Reply) -> Worker:
    if worker.following.verb:
        settled = Reply(grants=worker.granted)
        worker = _hears(worker, worker.doubt, settled)._replace(following=NOTHING, granted=())
    return _hears(worker, asked, reply)


def _hears(worker: Worker, asked: Asked, reply: Reply) -> Worker:
    copies, book, runs = list(worker.copies), dict(worker.book), list(worker.runs)
    granted = list(reply.grants)
    if asked.verb == "admit" and reply.status != "LATER":
        copies.remove(asked.attempt)
        granted += [(asked.attempt, reply.token)] if reply.status == "RUN" else []
    if asked.verb == "settle":
        runs.remove(next(run for run in runs if run[:2] == (asked.attempt, asked.token)))
        if book.get(asked.attempt) == asked.token:
            del book[asked.attempt]
    book.update(granted)
    runs += [Run(*grant) for grant in granted]
    return worker._replace(
        last=asked.nonce, doubt=NOTHING, copies=tuple(copies), book=tuple(book.items()), runs=tuple(runs)
    )


def _unheard(state: State, move: Move) -> State:
    asked, worker = move.asked, state.workers[move.slot]
    assert asked is not None
    late = (asked,)
    if move.what == "follow":
        pair = asked._replace(verb="pair", token=worker.doubt.token, outcome=worker.doubt.attempt)
        worker = _ends(worker, worker.doubt)._replace(doubt=pair, following=NOTHING, granted=())
    elif move.what.startswith("settle before"):
        admission = Asked("admit", asked.worker, asked.nonce + 1, move.what[-1], shares=True)
        late = (asked, admission)
        pair = admission._replace(verb="pair", token=asked.token, outcome=asked.attempt)
        worker = _ends(worker, asked)._replace(doubt=pair)
    elif asked.verb == "settle":
        worker = _ends(worker, asked)._replace(doubt=asked)
    elif asked.verb != "renew":
        worker = worker._replace(doubt=asked)
    return _with(state, move.slot, worker)._replace(late=(*state.late, *late))


def _ends(worker: Worker, settle: Asked) -> Worker:
    """A run whose settle was not heard will be settled so again."""
    runs = list(worker.runs)
    at = next(at for at, run in enumerate(runs) if run[:2] == (settle.attempt, settle.token))
    runs[at] = runs[at]._replace(ended=settle.outcome)
    return worker._replace(runs=tuple(runs))


def _with(state: State, slot: int, worker: Worker) -> State:
    return state._replace(workers=(*state.workers[:slot], worker, *state.workers[slot + 1 :]))


def _copies(state: State) -> list[str]:
    return [copy for worker in state.workers for copy in worker.copies]


def _nacked(state: State, slot: int) -> State:
    """A broker other than the store's Redis has what a connection had not acked again."""
    worker = state.workers[slot]
    queue = (*state.queue, *worker.copies)
    return _with(state, slot, worker._replace(copies=()))._replace(queue=queue)


def _crashed(world: World, state: State, stored: Stored, slot: int) -> tuple[State, Stored]:
    if not world.one_redis:
        state = _nacked(state, slot)
    worker = state.workers[slot]
    if worker.following.verb:
        state = state._replace(late=(*state.late, worker.following))
    generation = worker.generation + 1
    return _with(state, slot, Worker(generation)), stored.having(f"k:{name_of(slot, generation)}", ("set", [TASK]))


def _lost(world: World, state: State) -> State:
    """What the store held is lost with its data; so is what the broker held, if that is the same Redis."""
    gone = {HELD, FRESH} if world.one_redis else {HELD}
    fates = tuple(Fate(LOST) if fate.state in gone else fate for fate in state.fates)
    return state._replace(fates=fates, queue=() if world.one_redis else state.queue)


def _emptied(world: World, state: State, stored: Stored) -> Stored:
    return Stored(_empty(world.workers, [worker.generation for worker in state.workers]))


def _delivered(world: World, stored: Stored, attempt: str) -> Stored:
    return _unacked(stored, stored.unacked | {attempt}) if world.one_redis else stored


def _unacked(stored: Stored, tags: frozenset[str]) -> Stored:
    flat = [value for tag in sorted(tags) for value in (tag, "message")]
    index = [value for tag in sorted(tags) for value in (tag, str(NOW))]
    return stored.having("unacked", ("hash", flat)).having("unacked_index", ("zset", index))
