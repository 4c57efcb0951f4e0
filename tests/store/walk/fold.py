"""Makes equal states the same: only what the scripts can tell apart is kept.

They compare tokens for equality (that they grow is judged as it happens) and, when one is adopted, with each other;
arrivals and turns among themselves, the nonces of one worker among themselves, and times with now. Workers are
interchangeable.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from . import numbers
from .calls import LEASE_MS, NOW, Asked
from .effects import ANSWERED
from .numbers import LAST, Nonces, Numbers, nonces_of, numbers_of
from .stored import Holding, Stored
from .world import NOTHING, Prior, State, Worker, World, name_of

UNASKED = "UNASKED 0 0 "
RANK = 10**13
IDLE = Worker()
NOT_KEPT = ("outbox", "endings")
LONG_AGO = str(NOW - LEASE_MS)

Names = tuple[tuple[str, Nonces], ...]


def fold(world: World, state: State, stored: Stored) -> tuple[State, Stored]:
    """The state that stands for all equal ones, and what its server holds."""
    if world.epochs:
        state = _plainer(state, stored)
    folded = [_fold(world, state, stored, order) for order in _orders(state)]
    return min(folded, key=lambda found: found[0])


def _plainer(state: State, stored: Stored) -> State:
    """A call that was refused, and never sent before, might as well not have been made."""
    texts = [stored, *(_stored(prior.text) for prior in state.priors)]
    workers = []
    for slot, worker in enumerate(state.workers):
        name = name_of(slot, worker.generation)
        kept = (nonce for text in texts for nonce in text.answers.get(name, ()))
        late = (asked.nonce for asked in state.late if asked.worker == name and asked.verb in ANSWERED)
        if worker.doubt.verb and all(nonce <= worker.last for nonce in (*kept, *late)):
            worker = worker._replace(doubt=NOTHING)
        if worker.out and not worker.greeted and not state.cut and stored.epoch > 0 and not _changes(state):
            # The store would only tell which epoch it is.
            worker = worker._replace(greeted=stored.epoch)
        workers.append(worker)
    return state._replace(workers=tuple(workers))


def _changes(state: State) -> bool:
    """Whether the epoch may change any more."""
    return bool(state.budget.restarts or state.budget.rollbacks or state.budget.losses)


def _orders(state: State) -> list[tuple[int, ...]]:
    """The orders in which the workers may stand; each has the new slot of each old one."""
    if len(state.workers) != 2:
        return [tuple(range(len(state.workers)))]
    first, second = map(_looks, state.workers)
    if first == second:
        return [(0, 1), (1, 0)]
    return [(0, 1)] if first < second else [(1, 0)]


def _looks(worker: Worker) -> tuple[Any, ...]:
    runs = sorted((run.attempt, run.ended) for run in worker.runs)
    joins = worker.joined, worker.out, worker.greeted
    return worker.generation, sorted(worker.copies), runs, worker.doubt.verb, worker.doubt.attempt, joins


def _fold(world: World, state: State, stored: Stored, order: tuple[int, ...]) -> tuple[State, Stored]:
    texts = [stored, *(_stored(prior.text) for prior in state.priors)]
    nonces = {
        name_of(slot, generation): nonces_of(state, texts, slot, generation, order[slot])
        for slot, worker in enumerate(state.workers)
        for generation in range(worker.generation + 1)
    }
    view = _View(nonces, numbers_of(world, state, texts))
    names, keeps = tuple(nonces.items()), _Keeps(gaps=world.gaps, workers=_awaits(state))
    folded, *older = (_text(text, names, view.numbers, keeps) for text in texts)
    state = state._replace(
        text=folded.text,
        workers=tuple(view.worker(state.workers[order.index(slot)]) for slot in range(len(order))),
        late=tuple(sorted(map(view.late, state.late))),
        queue=tuple(sorted(state.queue)),
        unstored=view.leases(state.unstored),
        doubtful=view.leases(tuple(lease for lease in state.doubtful if lease in stored.tokens.items())),
        priors=tuple(Prior(text.text, prior.fates) for text, prior in zip(older, state.priors, strict=True)),
    )
    return state, folded


def _awaits(state: State) -> bool:
    """Whether it matters who has been seen: a restart awaits them."""
    return _changes(state) or state.cut or bool(state.unstored)


class _Keeps(tuple[bool, bool]):
    """Which of the store's own notes matter."""

    def __new__(cls, *, gaps: bool, workers: bool) -> _Keeps:
        return super().__new__(cls, (gaps, workers))

    @property
    def dropped(self) -> set[str]:
        gaps, workers = self
        return {*NOT_KEPT, *(() if gaps else ("pulse",)), *(() if workers else ("workers",))}


class _View:
    """Folds what workers know."""

    def __init__(self, nonces: dict[str, Nonces], numbers: Numbers) -> None:
        self._nonces, self.numbers = nonces, numbers

    def leases(self, leases: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((attempt, self.numbers.token(attempt, token)) for attempt, token in leases))

    def worker(self, worker: Worker) -> Worker:
        if worker == IDLE:
            return worker
        token, epoch = self.numbers.token, self.numbers.epoch
        return worker._replace(
            last=LAST,
            doubt=self._call(worker.doubt)._replace(epoch=0) if worker.doubt.verb else NOTHING,
            following=self._call(worker.following) if worker.following.verb else NOTHING,
            granted=tuple((attempt, token(attempt, own)) for attempt, own in worker.granted),
            copies=tuple(sorted(worker.copies)),
            book=self.leases(worker.book),
            runs=tuple(sorted(run._replace(token=token(run.attempt, run.token)) for run in worker.runs)),
            joined=epoch(worker.joined),
            greeted=epoch(worker.greeted),
            kept=self.leases(worker.kept),
            refused=self.leases(worker.refused),
        )

    def late(self, asked: Asked) -> Asked:
        return self._call(asked)

    def _call(self, asked: Asked) -> Asked:
        of = self._nonces[asked.worker]
        about = asked.outcome if asked.verb == "pair" else asked.attempt
        nonce = of.seen(asked.nonce) if asked.verb == "renew" else of.of(asked.nonce)
        return asked._replace(
            worker=of.name,
            nonce=0 if asked.verb in numbers.UNNUMBERED else nonce,
            token=self.numbers.token(about, asked.token) if asked.token else 0,
            held=self.leases(asked.held),
            epoch=self.numbers.epoch(asked.epoch),
            joined=self.numbers.epoch(asked.joined),
        )


@cache
def _text(stored: Stored, names: Names, numbered: Numbers, keeps: _Keeps) -> Stored:
    return _Page(stored, dict(names), numbered, keeps).folded()


@cache
def _stored(text: str) -> Stored:
    return Stored(text)


def forget() -> None:
    """Drop what was kept to fold faster."""
    for kept in (_text, _stored):
        kept.cache_clear()
    numbers.forget()


class _Page:
    """Folds what one server holds."""

    def __init__(self, stored: Stored, nonces: dict[str, Nonces], numbered: Numbers, keeps: _Keeps) -> None:
        self._stored, self._nonces, self._numbers, self._dropped = stored, nonces, numbered, keeps.dropped
        places = [record["score"] for record in stored.records.values() if record["state"] != "scheduled"]
        scores = [int(float(score)) for score in places]
        self._arrivals = _ranks([score % RANK for score in scores])
        self._turns = _ranks(list(stored.turns.values()))

    def folded(self) -> Stored:
        entries = dict(filter(None, map(self._entry, self._stored.entries)))
        return _stored(json.dumps(entries, sort_keys=True))

    def _entry(self, name: str) -> tuple[str, tuple[str, list[str]]] | None:
        value, kind = self._stored.entries[name], self._stored.kinds[name]
        if name in self._dropped:
            return None
        if name == "awaited":
            return name, (kind, sorted(self._nonces[worker].name for worker in value))
        if kind == "set":
            known = name.startswith("k:") and not self._nonces[name[2:]].speaks
            return None if known else (self._renamed(name), (kind, sorted(value)))
        if kind == "string":
            return name, (kind, [self._counter(name, value[0]), value[1]])
        folded = self._pairs(name, value)
        return (self._renamed(name), (kind, _flat(folded))) if folded else None

    def _renamed(self, name: str) -> str:
        if name[:2] not in ("w:", "r:", "k:"):
            return name
        return name[:2] + self._nonces[name[2:]].name

    def _counter(self, name: str, value: str) -> str:
        if name == "token":
            return str(self._numbers.counter(int(value)))
        return str(max(len(self._arrivals), len(self._turns))) if name == "seq" else value

    def _pairs(self, name: str, value: dict[str, str]) -> dict[str, str]:
        start, rest = name[:2], name[2:]
        if start == "a:":
            return self._record(rest, value)
        if start == "w:":
            return {attempt: self._note(self._nonces[rest], attempt, note) for attempt, note in self._held(rest)}
        if start == "r:":
            return self._answers(self._nonces[rest], value)
        if start == "t:":
            return {key: str(self._turns[int(float(turn))]) for key, turn in value.items()}
        if start == "l:":
            return {attempt: self._score(score) for attempt, score in value.items()}
        if start == "n:":
            return {self._nonces[worker].name: "" for worker in value}
        if name in ("leases", "sched"):
            return {attempt: str(int(float(time))) for attempt, time in value.items()}
        if name == "workers":
            return {self._nonces[worker].name: str(NOW) for worker in value}
        return self._epoch(value) if name == "epoch" else value

    def _held(self, worker: str) -> list[tuple[str, Holding]]:
        return list(self._stored.held[worker].items())

    def _record(self, attempt: str, record: dict[str, str]) -> dict[str, str]:
        token, last = record.get("token"), record.get("last")
        now = {"score": self._score(record["score"]), "granted": "", "born": "", "lost_on": ""}
        if token:
            now["token"] = str(self._numbers.token(attempt, int(token)))
        told = last and last != "0" and attempt in self._numbers.told
        now["last"] = str(self._numbers.token(attempt, int(last))) if told else "0"
        now["worker"] = self._nonces[record["worker"]].name if token else ""
        if record.get("state") == "scheduled":
            now["score"] = "0"
        return {**record, **now}

    def _epoch(self, epoch: dict[str, str]) -> dict[str, str]:
        times = {field: int(epoch.get(field) or 0) for field in ("born", "soon", "safe_at", "id", "before", "adopted")}
        now = {field: str(times[field] if times[field] > NOW else 0) for field in ("soon", "safe_at")}
        now["born"] = str(max(times["born"], NOW - LEASE_MS))
        now["id"] = str(self._numbers.epoch(times["id"]))
        now["before"] = str(self._numbers.epoch(times["before"]) or "")
        now["adopted"] = str(self._numbers.counter(times["adopted"]))
        return {**epoch, **now}

    def _note(self, nonces: Nonces, attempt: str, note: Holding) -> str:
        nonce = nonces.seen(note.nonce) if nonces.speaks else LAST
        return f"{self._numbers.token(attempt, note.token)}:{nonce}"

    def _answers(self, nonces: Nonces, kept: dict[str, str]) -> dict[str, str]:
        """The answers kept, where a call may come that they matter to; even and odd trade places if they must."""
        folded, calls = {}, dict(nonces.open_calls)
        for place in (0, 1) if calls else ():
            if f"answer{place}" not in kept:
                continue
            old = int(kept[f"n{place}"])
            new, matters = nonces.of(old), old in calls or old + 1 in calls
            there = (place + new - old) % 2
            folded[f"n{there}"] = str(new)
            folded[f"answer{there}"] = self._answer(kept[f"answer{place}"], calls.get(old, "")) if matters else UNASKED
        return folded

    def _answer(self, answer: str, admitted: str) -> str:
        status, token, more, grants = answer.split(" ", 3)
        if token != "0":
            token = str(self._numbers.token(admitted, int(token)))
        flat = json.loads(grants or "[]")
        held = zip(flat[::2], flat[1::2], strict=True)
        again = [value for name, old in held for value in (name, str(self._numbers.token(name, int(old))))]
        return f"{status} {token} {more} " + (json.dumps(again) if again else "")

    def _score(self, score: str) -> str:
        number = int(float(score))
        return str(number - number % RANK + self._arrivals.get(number % RANK, 0))


def _ranks(values: list[int]) -> dict[int, int]:
    return {value: rank for rank, value in enumerate(sorted(set(values)), 1)}


def _flat(pairs: dict[str, str]) -> list[str]:
    return [value for pair in sorted(pairs.items()) for value in pair]
