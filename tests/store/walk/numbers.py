"""New numbers for a state's nonces, tokens and epochs: only what the scripts can tell apart stays different."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from .calls import NOW, Asked
from .stored import Stored
from .world import Lease, State, Worker, World, name_of

TOKENS = NOW * 1000 + 1
COUNTER = TOKENS + 1000
STALE = NOW * 1000 - 1
EARLIER = NOW * 1000 - 10**6
"""Below this clock; tokens that the clock has gone past are numbered from here."""
BAND, RANK_STEP = 10_000, 100
EPOCHS = NOW * 1000 - 1000
OTHER_EPOCH = EPOCHS - 1
LAST = 100


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


def nonces_of(state: State, texts: Iterable[Stored], slot: int, generation: int, new_slot: int) -> Nonces:
    old, worker = name_of(slot, generation), state.workers[slot]
    lives = generation == worker.generation
    mine = (worker.doubt, worker.following) if lives else ()
    late = (asked for asked in state.late if asked.worker == old)
    open_calls = tuple(asked for asked in (*mine, *late) if asked.verb not in UNNUMBERED)
    last = worker.last if lives else max((asked.nonce for asked in open_calls), default=LAST)
    kept = tuple(sorted({nonce for stored in texts for nonce in stored.answers.get(old, ())}))
    return _numbered(name_of(new_slot, generation), last, open_calls, kept, lives)


UNNUMBERED = ("", "adopt", "join", "leave")


@cache
def _numbered(new: str, last: int, open_calls: tuple[Asked, ...], kept: tuple[int, ...], lives: bool) -> Nonces:
    renewals = {last, *(asked.nonce for asked in open_calls if asked.verb == "renew")}
    calls = {nonce: attempt for asked in open_calls if asked.verb != "renew" for nonce, attempt in _calls(asked)}
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


def _calls(asked: Asked) -> list[tuple[int, str]]:
    if asked.verb == "pair":
        return [(asked.nonce, asked.attempt), (asked.nonce - 1, "")]
    return [(asked.nonce, asked.attempt if asked.verb == "admit" else "")]


class Numbers(NamedTuple):
    """New numbers for tokens, counters of tokens and epochs."""

    tokens: tuple[tuple[Lease, int], ...]
    counters: tuple[tuple[int, int], ...]
    epochs: tuple[tuple[int, int], ...] = ()
    told: tuple[str, ...] = ()
    """The attempts under whose tokens anybody may still come."""

    def token(self, attempt: str, token: int) -> int:
        return _dict(self.tokens).get((attempt, token), STALE)

    def counter(self, value: int) -> int:
        return _dict(self.counters).get(value, value)

    def epoch(self, epoch: int) -> int:
        """Epochs that the store never had here are all the same."""
        return _dict(self.epochs).get(epoch, OTHER_EPOCH) if epoch else 0


@cache
def _dict(pairs: tuple[tuple[object, int], ...]) -> dict[object, int]:
    return dict(pairs)


def numbers_of(world: World, state: State, texts: list[Stored]) -> Numbers:
    """Where nobody brings a lease to a store that may not know it, tokens are only the stored one or another."""
    if not world.epochs:
        return _plain(texts[0])
    brought = sorted(set(_leases(state)))
    counters = sorted({value for stored in texts for value in (stored.token, stored.adopted) if value})
    known = {*brought, *(lease for stored in texts for lease in _stored_leases(stored))}
    base = TOKENS if world.clock_back else EARLIER
    tokens = {}
    for attempt, own in itertools.groupby(sorted(known), lambda lease: lease[0]):
        for rank, lease in enumerate(own):
            band = sum(value < lease[1] for value in counters)
            tokens[lease] = base + band * BAND + rank * RANK_STEP + ord(attempt[0]) - ord("A")
    numbered = tuple((value, base + band * BAND + BAND - 1) for band, value in enumerate(counters))
    epochs = sorted({epoch for stored in texts for epoch in (stored.epoch, stored.of_epoch("before")) if epoch > 0})
    numbered_epochs = tuple((epoch, EPOCHS + rank) for rank, epoch in enumerate(epochs))
    told = tuple(sorted({attempt for attempt, _ in brought}))
    return Numbers(tuple(tokens.items()), numbered, numbered_epochs, told)


@cache
def _plain(stored: Stored) -> Numbers:
    tokens = {(attempt, token): TOKENS + ord(attempt[0]) for attempt, token in stored.tokens.items()}
    return Numbers(tuple(tokens.items()), ((stored.token, COUNTER),) if stored.token else ())


def _leases(state: State) -> Iterator[Lease]:
    """All leases that somebody knows of."""
    yield from (*state.unstored, *state.doubtful)
    for worker in state.workers:
        yield from _leases_of(worker)
    for asked in state.late:
        yield from leases_of_call(asked)


def _leases_of(worker: Worker) -> Iterator[Lease]:
    yield from (*worker.book, *worker.granted, *worker.kept, *worker.refused)
    yield from (run[:2] for run in worker.runs)
    yield from leases_of_call(worker.doubt)


def leases_of_call(asked: Asked) -> Iterator[Lease]:
    yield from asked.held
    if asked.token:
        yield (asked.outcome if asked.verb == "pair" else asked.attempt), asked.token


def _stored_leases(stored: Stored) -> Iterator[Lease]:
    yield from stored.tokens.items()
    lasts = ((attempt, int(record.get("last", 0))) for attempt, record in stored.records.items())
    yield from (lease for lease in lasts if lease[1])


def forget() -> None:
    """Drop what was kept to number faster."""
    for kept in (_numbered, _dict, _plain):
        kept.cache_clear()
