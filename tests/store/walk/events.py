"""What a move makes of a state, given what the server made of its call."""

from __future__ import annotations

import json

from .calls import HOST, LEASE_MS, NOW, SERVER, TASK, Asked, Reply
from .effects import Effect
from .losses import (
    crashed,
    emptied,
    lease_passed,
    nacked,
    orphans,
    restarted,
    ripened,
    rolled_back,
    silence_passed,
    soon_passed,
)
from .stored import Stored
from .world import FRESH, HELD, LOST, NOTHING, Fate, Move, Prior, Run, State, Worker, World, name_of, with_worker

FIRST_EPOCH = 1


def first_state(world: World) -> tuple[State, Stored]:
    """All messages at the broker, all workers at rest and known to the store."""
    names = tuple(sorted(world.attempts))
    joined = [name_of(slot, 0) for slot in range(world.workers - world.fresh)]
    known: dict[str, tuple[str, list[str]]] = {f"k:{name}": ("set", [TASK]) for name in joined}
    if world.epochs:
        known["epoch"] = ("hash", ["id", str(FIRST_EPOCH), "run", SERVER, "born", str(NOW - LEASE_MS)])
        known["pulse"] = ("hash", ["at", str(NOW), "gap", "0"])
        known["workers"] = ("zset", [text for name in joined for text in (name, str(NOW))])
    if world.witnesses:
        known[f"n:{HOST}"] = ("hash", [text for name in joined for text in (name, name)])
    stored = Stored(json.dumps(known))
    workers = (Worker(joined=FIRST_EPOCH if world.epochs else 0),) * len(joined) + (Worker(out=True),) * world.fresh
    return State(stored.text, workers, (), names, (Fate(),) * len(names), world.budget), stored


def happen(world: World, state: State, stored: Stored, move: Move) -> tuple[State, Stored]:
    """A move without an answer: the state, and what the server holds."""
    if move.how == "unheard":
        return _unheard(world, state, move), stored
    if move.what in TIMES:
        return _time_passes(state, stored, move.what)
    budget = state.budget
    if move.what == "deliver":
        stored = _delivered(world, stored, move.attempt)
        worker = state.workers[move.slot]
        state = with_worker(state, move.slot, worker._replace(copies=(*worker.copies, move.attempt)))
        state = state._replace(queue=tuple(name for name in state.queue if name != move.attempt))
    elif move.what == "reconnect":
        state, budget = nacked(state, move.slot), budget.less(redeliveries=1)
    elif move.what == "crash":
        state, stored = crashed(world, state, stored, move.slot)
        budget = budget.less(crashes=1)
    elif move.what == "restore":
        stored = _unacked(stored, stored.unacked - {move.attempt})
        state = state._replace(queue=(*state.queue, move.attempt))
        budget = budget.less(redeliveries=0 if move.how == "free" else 1)
    elif move.what == "lose all data":
        state, stored = emptied(world, state, stored)
        budget = budget.less(losses=1)
    elif move.what == "restart":
        state, stored = restarted(state, stored)
        budget = budget.less(restarts=1)
    else:
        assert move.what == "restart with older data"
        state, stored = rolled_back(state, stored, int(move.attempt))
        budget = budget.less(rollbacks=1)
    return state._replace(budget=budget), stored


SHORT = ("it is safe soon", "a moment passes")
TIMES = ("a lease passes", "the store is away", "the leases of the gone pass", *SHORT)


def _time_passes(state: State, stored: Stored, what: str) -> tuple[State, Stored]:
    budget = state.budget.less(expiries=what == "a lease passes", gaps=what == "the store is away")
    priors = tuple(prior._replace(text=_later(state, Stored(prior.text), what).text) for prior in state.priors)
    if what not in SHORT:
        state = state._replace(unstored=(), young=False)
    return state._replace(budget=budget, priors=priors), _later(state, stored, what)


def _later(state: State, stored: Stored, what: str) -> Stored:
    over = stored.leases if what in ("a lease passes", "the store is away") else orphans(state, stored)
    stored = ripened(stored, (*stored.sched, *(() if what in SHORT else over)))
    if what in SHORT:
        return soon_passed(stored) if what == "it is safe soon" else stored
    return silence_passed(stored) if what == "the store is away" else lease_passed(state, stored)


def answer(
    world: World, state: State, stored: Stored, move: Move, reply: Reply, effect: Effect, *, changed: bool
) -> State:
    """A call that was carried out; the worker hears of it unless it has moved on or never will."""
    asked, prior = move.asked, Prior(state.text, state.fates)
    assert asked is not None
    state = _knows(state, stored, asked, reply)._replace(fates=_fates(world, state, effect))
    if changed and state.budget.rollbacks:
        state = state._replace(priors=(prior, *state.priors)[: world.forgets])
    if move.what == "arrive":
        late = list(state.late)
        late.remove(asked)
        return state._replace(late=tuple(late))
    if move.what == "greet":
        state = state._replace(cut=False, young=False)
    if move.slot < 0:
        return state
    worker = state.workers[move.slot]
    if reply.status == "EPOCH":
        return with_worker(state, move.slot, _doubts(worker, move).leaves())
    if move.what == "leave":
        return _left(world, state, move.slot)
    if move.what in ("greet", "adopt", "join", "renew", "recover"):
        return with_worker(state, move.slot, _beats(world, worker, asked, reply))
    if move.what.startswith("settle before"):
        return with_worker(state, move.slot, _half_heard(worker, move, reply))
    state = with_worker(state, move.slot, _hears_all(worker, asked, reply, effect))
    if move.how == "unacked" and reply.status != "LATER":
        budget = state.budget.less(redeliveries=1)
        return state._replace(queue=(*state.queue, asked.attempt), budget=budget)
    return state


def _knows(state: State, stored: Stored, asked: Asked, reply: Reply) -> State:
    """What the store knows of what it has lost, once a call was carried out."""
    lease = asked.attempt, asked.token
    if reply.status == "KEPT" and lease not in {*stored.tokens.items(), *state.unstored}:
        state = state._replace(doubtful=(*state.doubtful, lease))
    if reply.status in ("KEPT", "LOST"):
        state = state._replace(unstored=tuple(lost for lost in state.unstored if lost != lease))
    unknown = asked.joined and asked.joined not in (stored.epoch, stored.of_epoch("before"))
    return state._replace(told=True) if unknown and reply.status in ("KEPT", "LOST", "JOINED") else state


def _left(world: World, state: State, slot: int) -> State:
    state, _ = crashed(world, state, Stored("{}"), slot)
    return state._replace(budget=state.budget.less(stops=1))


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


def _beats(world: World, worker: Worker, asked: Asked, reply: Reply) -> Worker:
    """What the heartbeat makes of an answer."""
    lease = asked.attempt, asked.token
    if asked.verb == "greet":
        return worker._replace(greeted=reply.token)
    if reply.status == "KEPT":
        return worker._replace(kept=(*worker.kept, lease))
    if reply.status == "LOST":
        return worker._replace(refused=(*worker.refused, lease))
    if reply.status == "JOINED":
        book = tuple(lease for lease in worker.book if lease not in worker.refused)
        return worker._replace(joined=asked.epoch, book=book, out=False, greeted=0, kept=(), refused=())
    if reply.status == "RENEWED" and world.epochs:
        # What it knows to be lost it does not bring to another epoch.
        lost = {lease for lease in asked.held if lease[0] in reply.lost}
        return worker._replace(book=tuple(lease for lease in worker.book if lease not in lost))
    return worker


def _half_heard(worker: Worker, move: Move, reply: Reply) -> Worker:
    """The settle of a pair is answered; its admission follows. ``doubt`` stands for the settle meanwhile."""
    settle = move.asked
    assert settle is not None
    return worker._replace(following=_following(move), doubt=settle, granted=reply.grants)


def _following(move: Move) -> Asked:
    settle = move.asked
    assert settle is not None
    return Asked("admit", settle.worker, settle.nonce + 1, move.what[-1], shares=True, epoch=settle.epoch)


def _hears_all(worker: Worker, asked: Asked, reply: Reply, effect: Effect) -> Worker:
    if worker.following.verb:
        settled = Reply(grants=worker.granted)
        worker = _hears(worker, worker.doubt, settled, effect)._replace(following=NOTHING, granted=())
    return _hears(worker, asked, reply, effect)


def _hears(worker: Worker, asked: Asked, reply: Reply, effect: Effect) -> Worker:
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
    stalls = dict(effect.stalls) if worker.joined else {}
    runs += [Run(*grant, stalls=stalls.get(grant[0], 0)) for grant in granted]
    return worker._replace(
        last=asked.nonce, doubt=NOTHING, copies=tuple(copies), book=tuple(book.items()), runs=tuple(runs)
    )


def _unheard(world: World, state: State, move: Move) -> State:
    asked, worker = move.asked, state.workers[move.slot]
    assert asked is not None
    if asked.verb == "leave":
        return _left(world, state, move.slot)._replace(late=(*state.late, asked))
    late = (asked, _following(move)) if move.what.startswith("settle before") else (asked,)
    worker = worker.leaves() if worker.out else _doubts(worker, move)
    state = with_worker(state, move.slot, worker)
    return state._replace(late=(*state.late, *late), budget=state.budget.less(unheard=1))


def _doubts(worker: Worker, move: Move) -> Worker:
    """A worker that does not know whether its call was carried out."""
    asked = move.asked
    assert asked is not None
    if move.what == "follow":
        pair = asked._replace(verb="pair", token=worker.doubt.token, outcome=worker.doubt.attempt)
        return _ends(worker, worker.doubt)._replace(doubt=pair, following=NOTHING, granted=())
    if move.what.startswith("settle before"):
        pair = _following(move)._replace(verb="pair", token=asked.token, outcome=asked.attempt)
        return _ends(worker, asked)._replace(doubt=pair)
    if asked.verb == "settle":
        return _ends(worker, asked)._replace(doubt=asked)
    return worker._replace(doubt=asked) if asked.verb in ("admit", "claim") else worker


def _ends(worker: Worker, settle: Asked) -> Worker:
    """A run whose settle was not heard will be settled so again."""
    runs = list(worker.runs)
    at = next(at for at, run in enumerate(runs) if run[:2] == (settle.attempt, settle.token))
    runs[at] = runs[at]._replace(ended=settle.outcome)
    return worker._replace(runs=tuple(runs))


def _delivered(world: World, stored: Stored, attempt: str) -> Stored:
    return _unacked(stored, stored.unacked | {attempt}) if world.one_redis else stored


def _unacked(stored: Stored, tags: frozenset[str]) -> Stored:
    flat = [value for tag in sorted(tags) for value in (tag, "message")]
    index = [value for tag in sorted(tags) for value in (tag, str(NOW))]
    return stored.having("unacked", ("hash", flat)).having("unacked_index", ("zset", index))
