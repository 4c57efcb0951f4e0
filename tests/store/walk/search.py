"""Goes everywhere: every move in every state, each state once, the shortest way first."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_backfill.leases.script import Script

from .calls import Asked, Reply
from .effects import Effect, effect_of
from .events import answer, first_state, happen
from .fold import fold, forget
from .invariants import wrong_with
from .judge import Judge
from .moves import moves
from .promises import wrong_between, wrong_with_change
from .server import Server
from .stored import Stored
from .world import HELD, Move, State, World

CALM_STEPS = 60


class Broken(AssertionError):
    """A promise was broken; the message has the way that led there."""


class Done(NamedTuple):
    """What the server made of one call, and what is wrong with that."""

    reply: Reply
    after: Stored
    effect: Effect
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    world: str
    states: int
    transitions: int
    calls: int
    seconds: float


class Walk:
    """One world on one server."""

    def __init__(self, world: World, url: str, namespace: str, scripts: Mapping[str, Script] | None = None) -> None:
        self.world = world
        self._server = Server(url, namespace, world, scripts)
        self._done: dict[tuple[str, Asked], Done] = {}
        self._sound: dict[str, tuple[str, ...]] = {}
        self._stored: dict[str, Stored] = {}
        self._from: dict[State, tuple[State | None, Move | None]] = {}
        self._calm: dict[State, list[tuple[Move, State]]] = {}
        self.transitions = 0

    def close(self) -> None:
        self._server.close()
        forget()

    def everywhere(self, *, enough: float = float("inf")) -> Figures:
        """Walk to the end of the state space, or no further once there are ``enough`` states.

        Raises ``Broken`` with the shortest way to what is wrong. Workers are interchangeable: in a way that is told,
        two that are in equal states may have traded names.
        """
        began = time.monotonic()
        frontier = [self.start()]
        with _uncollected():
            while frontier and len(self._from) < enough:
                frontier = self._further(frontier)
            if not frontier:
                self._comes_to_an_end()
        seconds = time.monotonic() - began
        return Figures(self.world.name, len(self._from), self.transitions, len(self._done), seconds)

    def start(self) -> State:
        state, stored = fold(self.world, *first_state(self.world))
        self._stored[state.text] = stored
        self._from[state] = (None, None)
        return state

    def moves(self, state: State) -> list[Move]:
        return list(moves(self.world, state, self._stored[state.text]))

    def _further(self, frontier: list[State]) -> list[State]:
        """One move on from each state: the new states."""
        ahead = [(state, self.moves(state)) for state in frontier]
        self.ask((state, move) for state, all_moves in ahead for move in all_moves)
        found = []
        for state, all_moves in ahead:
            for move in all_moves:
                reached = self.reach(state, move)
                if reached not in self._from:
                    self._from[reached] = (state, move)
                    found.append(reached)
                if _is_calm(move) and reached != state:
                    self._calm.setdefault(state, []).append((move, reached))
        return found

    def ask(self, wanted: Iterable[tuple[State, Move]]) -> None:
        """Have the server carry out all calls that it has not carried out on the same stored state before."""
        jobs = {
            (state.text, move.asked): None for state, move in wanted if move.asked is not None and move.how != "unheard"
        }
        new = [job for job in jobs if job not in self._done]
        for (text, asked), (reply, after) in zip(new, self._server.carry_out(new), strict=True):
            self._done[text, asked] = self._judged(self._stored[text], asked, reply, after)

    def step(self, state: State, move: Move) -> State:
        """Make one move. Raises ``Broken``."""
        self.ask([(state, move)])
        reached = self.reach(state, move)
        self._from.setdefault(reached, (state, move))
        return reached

    def reach(self, state: State, move: Move) -> State:
        """Where a move leads; its call must have been asked. Raises ``Broken``."""
        self.transitions += 1
        try:
            if move.asked is None or move.how == "unheard":
                moved, stored = happen(self.world, state, self._stored[state.text], move)
            else:
                moved, stored = self._answered(state, move, self._done[state.text, move.asked])
            folded, stored = fold(self.world, moved, stored)
            wrong = [] if folded in self._from else list(wrong_between(self.world, folded, stored))
        except AssertionError as error:
            wrong = [str(error)]
        if wrong:
            raise Broken(self._story(state, move, wrong))
        self._stored.setdefault(folded.text, stored)
        return folded

    def _answered(self, state: State, move: Move, done: Done) -> tuple[State, Stored]:
        wrong = [*done.wrong, *wrong_with_change(self.world, state, move, done.reply, done.effect, done.after)]
        if wrong:
            raise AssertionError("\n".join(wrong))
        before = self._stored[state.text]
        changed = done.after.entries != before.entries
        return answer(self.world, state, before, move, done.reply, done.effect, changed=changed), done.after

    def _judged(self, before: Stored, asked: Asked, reply: Any, after: Stored) -> Done:
        if isinstance(reply, Exception):
            return Done(Reply(), after, Effect(), (f"the script failed: {reply}",))
        if after.text not in self._sound:
            self._sound[after.text] = tuple(wrong_with(after))
        try:
            wrong = (*self._sound[after.text], *Judge(self.world, before, asked, reply, after).verdict())
        except (KeyError, ValueError, AttributeError) as error:
            wrong = (*self._sound[after.text], f"what was done makes no sense: {error!r}")
        return Done(reply, after, effect_of(before, asked, after), wrong)

    def _comes_to_an_end(self) -> None:
        """From every state, once nothing goes wrong any more, all ends (invariants 2 and 4)."""
        ends: set[State] = set()
        for state in self._from:
            way, at = [], state
            while at not in ends and len(way) < CALM_STEPS:
                ahead = self._calm.get(at)
                if not ahead:
                    break
                way.append(at)
                at = min(ahead, key=lambda found: _haste(found[0]))[1]
            if at not in ends and any(fate.state in (HELD, "fresh") for fate in at.fates):
                raise Broken(self._story(at, None, [f"this does not come to an end by itself: {at}"]))
            ends |= {*way, at}

    def _story(self, state: State, move: Move | None, wrong: Iterable[str]) -> str:
        way = [str(move)] if move else []
        at: State | None = state
        while at is not None:
            at, step = self._from.get(at, (None, None))
            if step is not None:
                way.insert(0, str(step))
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(way, 1))
        return f"{self.world.name}: " + "\n".join(wrong) + f"\nafter\n{steps}"


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing here makes cycles, and there is much to look through for some."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


CALM = (
    "greet",
    "adopt",
    "join",
    "it is safe soon",
    "follow",
    "settle",
    "recover",
    "witness",
    "restore",
    "deliver",
    "admit",
    "renew",
    "a moment passes",
    "the leases of the gone pass",
    # Last: with late calls on their way, even a claim that gets nothing leads to another state.
    "claim",
)


def _is_calm(move: Move) -> bool:
    """What workers do when nothing goes wrong, if every task succeeds."""
    return move.what in CALM and move.how in ("heard", "free")


def _haste(move: Move) -> tuple[int, bool, str]:
    succeeds = move.asked is not None and move.asked.outcome == "done"
    return CALM.index(move.what), not succeeds, str(move)


__all__ = ["Broken", "Figures", "Walk"]
