"""Makes equal states the same: only what the scripts can tell apart is kept.

They compare tokens for equality (that they grow is judged as it happens), arrivals and turns among themselves, the
nonces of one worker among themselves, and times with now. Workers are interchangeable.
"""

from __future__ import annotations

import itertools
import json
from functools import cache
from typing import Any, NamedTuple

from .calls import NOW, Asked
from .stored import Holding, Stored
from .world import State, Worker, name_of

TOKENS = NOW * 1000 + 1
COUNTER = TOKENS + 1000
STALE = NOW * 1000 - 1
LAST = 100
UNASKED = "UNASKED 0 0 "
RANK = 10**13
IDLE = Worker()


class Nonces(NamedTuple):
    """New numbers for one worker's nonces, and its new name. Order, neighbours, and odd and even stay as they are."""

    name: str
    last: int
    numbers: tuple[tuple[int, int], ...]
    renewals: tuple[int, ...]
    """The last answered nonces that renewals name or will name."""
    open_calls: tuple[tuple[int, str], ...]
    """The calls that may still come, by nonce, each with the attempt it may admit."""
    speaks: bool
    """Whether any call of this worker can still come."""

    def of(self, nonce: int) -> int:
        """The number of the first nonce that matters and is not lower."""
        return next((number for known, number in self.numbers if nonce <= known), self.numbers[-1][1] + 1)

    def seen(self, nonce: int) -> int:
        """As far as renewals can tell."""
        if nonce > self.last:
            return self.of(nonce)
        later = sum(nonce <= known for known in self.renewals)
        return LAST + 1 - later


Names = tuple[tuple[str, Nonces], ...]
Passed = tuple[str, ...]


def fold(state: State, stored: Stored, passed: Passed = ()) -> tuple[State, Stored]:
    """The state that stands for all equal ones, and what its server holds. ``passed``: whose times have come."""
    folded = [_fold(state, stored, order, passed) for order in _orders(state)]
    return min(folded, key=lambda found: found[0])


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
    return worker.generation, sorted(worker.copies), runs, worker.doubt.verb, worker.doubt.attempt


def _fold(state: State, stored: Stored, order: tuple[int, ...], passed: Passed) -> tuple[State, Stored]:
    nonces = {
        name_of(slot, generation): _nonces(state, stored, slot, generation, order[slot])
        for slot, worker in enumerate(state.workers)
        for generation in range(worker.generation + 1)
    }
    folded = _text(stored, tuple(nonces.items()), passed)
    workers = [_worker(state.workers[order.index(slot)], stored, nonces) for slot in range(len(order))]
    late = tuple(sorted(_call(asked, stored, nonces) for asked in state.late))
    return state._replace(text=folded.text, workers=tuple(workers), late=late, queue=tuple(sorted(state.queue))), folded


def _nonces(state: State, stored: Stored, slot: int, generation: int, new_slot: int) -> Nonces:
    old, worker = name_of(slot, generation), state.workers[slot]
    lives = generation == worker.generation
    mine = (worker.doubt, worker.following) if lives else ()
    late = (asked for asked in state.late if asked.worker == old)
    open_calls = tuple(asked for asked in (*mine, *late) if asked.verb)
    last = worker.last if lives else max((asked.nonce for asked in open_calls), default=LAST)
    kept = tuple(sorted(stored.answers.get(old, ())))
    return _numbered(name_of(new_slot, generation), last, open_calls, kept, lives)


@cache
def _numbered(new: str, last: int, open_calls: tuple[Asked, ...], kept: tuple[int, ...], lives: bool) -> Nonces:
    renewals = {last, *(asked.nonce for asked in open_calls if asked.verb == "renew")}
    calls = {nonce: attempt for asked in open_calls if asked.verb != "renew" for nonce, attempt in _nonces_of(asked)}
    numbers = _nearer(sorted({last, *calls, *(kept if calls else ())}), last)
    return Nonces(new, last, numbers, tuple(sorted(renewals)), tuple(sorted(calls.items())), lives or bool(open_calls))


def _nearer(nonces: list[int], last: int) -> tuple[tuple[int, int], ...]:
    """Each nonce with its new number; gaps are closed."""
    numbers = [0]
    for lower, higher in itertools.pairwise(nonces):
        gap = higher - lower
        numbers.append(numbers[-1] + (gap if gap < 4 else 2 + gap % 2))
    shift = LAST - numbers[nonces.index(last)]
    return tuple((nonce, number + shift) for nonce, number in zip(nonces, numbers, strict=True))


def _nonces_of(asked: Asked) -> list[tuple[int, str]]:
    if asked.verb == "pair":
        return [(asked.nonce, asked.attempt), (asked.nonce - 1, "")]
    return [(asked.nonce, asked.attempt if asked.verb == "admit" else "")]


def _worker(worker: Worker, stored: Stored, nonces: dict[str, Nonces]) -> Worker:
    if worker == IDLE:
        return worker
    return worker._replace(
        last=LAST,
        doubt=_call(worker.doubt, stored, nonces) if worker.doubt.verb else worker.doubt,
        following=_call(worker.following, stored, nonces) if worker.following.verb else worker.following,
        granted=tuple((attempt, _token(stored, attempt, token)) for attempt, token in worker.granted),
        copies=tuple(sorted(worker.copies)),
        book=tuple(sorted((attempt, _token(stored, attempt, token)) for attempt, token in worker.book)),
        runs=tuple(sorted(run._replace(token=_token(stored, run.attempt, run.token)) for run in worker.runs)),
    )


def _call(asked: Asked, stored: Stored, nonces: dict[str, Nonces]) -> Asked:
    of = nonces[asked.worker]
    held = tuple(sorted((attempt, _token(stored, attempt, token)) for attempt, token in asked.held))
    about = asked.outcome if asked.verb == "pair" else asked.attempt
    token = _token(stored, about, asked.token) if asked.token else 0
    nonce = of.seen(asked.nonce) if asked.verb == "renew" else of.of(asked.nonce)
    return asked._replace(worker=of.name, nonce=nonce, token=token, held=held)


def _token(stored: Stored, attempt: str, token: int) -> int:
    return TOKENS + ord(attempt[0]) if stored.tokens.get(attempt) == token else STALE


@cache
def _text(stored: Stored, names: Names, passed: Passed) -> Stored:
    return _Page(stored, dict(names), passed).folded()


@cache
def _stored(text: str) -> Stored:
    return Stored(text)


def forget() -> None:
    """Drop what was kept to fold faster."""
    for kept in (_text, _stored, _numbered):
        kept.cache_clear()


class _Page:
    """Folds what one server holds."""

    def __init__(self, stored: Stored, nonces: dict[str, Nonces], passed: Passed) -> None:
        self._stored, self._nonces, self._passed = stored, nonces, passed
        places = [record["score"] for record in stored.records.values() if record["state"] != "scheduled"]
        scores = [int(float(score)) for score in places]
        self._arrivals = _ranks([score % RANK for score in scores])
        self._turns = _ranks(list(stored.turns.values()))

    def folded(self) -> Stored:
        entries = dict(filter(None, map(self._entry, self._stored.entries)))
        return _stored(json.dumps(entries, sort_keys=True))

    def _entry(self, name: str) -> tuple[str, tuple[str, list[str]]] | None:
        value, kind = self._stored.entries[name], self._stored.kinds[name]
        if name == "outbox":
            return None
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
            return str(COUNTER)
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
        if name in ("leases", "sched"):
            return {attempt: self._time(attempt, time) for attempt, time in value.items()}
        return value

    def _held(self, worker: str) -> list[tuple[str, Holding]]:
        return list(self._stored.held[worker].items())

    def _record(self, attempt: str, record: dict[str, str]) -> dict[str, str]:
        token = record.get("token")
        now = {"score": self._score(record["score"]), "granted": "", "born": ""}
        if token:
            now["token"] = str(_token(self._stored, attempt, int(token)))
        now["worker"] = self._nonces[record["worker"]].name if token else ""
        if record.get("state") == "scheduled":
            now["score"] = "0"
        return {**record, **now}

    def _note(self, nonces: Nonces, attempt: str, note: Holding) -> str:
        nonce = nonces.seen(note.nonce) if nonces.speaks else LAST
        return f"{_token(self._stored, attempt, note.token)}:{nonce}"

    def _answers(self, nonces: Nonces, kept: dict[str, str]) -> dict[str, str]:
        """The answers kept, where a call may come that they matter to; even and odd trade places if they must."""
        folded, calls = {}, dict(nonces.open_calls)
        for place in (0, 1) if calls else ():
            if f"n{place}" not in kept:
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
            token = str(_token(self._stored, admitted, int(token)))
        flat = json.loads(grants or "[]")
        held = zip(flat[::2], flat[1::2], strict=True)
        again = [value for name, old in held for value in (name, str(_token(self._stored, name, int(old))))]
        return f"{status} {token} {more} " + (json.dumps(again) if again else "")

    def _score(self, score: str) -> str:
        number = int(float(score))
        return str(number - number % RANK + self._arrivals.get(number % RANK, 0))

    def _time(self, attempt: str, time: str) -> str:
        return str(NOW - 1) if attempt in self._passed else str(int(float(time)))


def _ranks(values: list[int]) -> dict[int, int]:
    return {value: rank for rank, value in enumerate(sorted(set(values)), 1)}


def _flat(pairs: dict[str, str]) -> list[str]:
    return [value for pair in sorted(pairs.items()) for value in pair]
