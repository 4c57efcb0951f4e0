"""What ends: each run's end becomes a settlement, and what the store hands on for it goes to the gate.

``acknowledged`` stays False until the store has answered. What it could not be told is kept until it is back.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ..errors import StoreUnavailableError
from ..events import emit
from ..leases.store import Admission, Answer
from .ends import End, as_it_was
from .intake import Intake
from .lane import Held, Lane, Settlement
from .slots import Slots

UNANSWERED = ("OLD", "LATER")


class Starter(Protocol):
    """What settling needs of the gate: the next message in line, and somebody who starts what comes of it."""

    away: bool
    closing: bool

    def next_in_line(self) -> tuple[Any, Admission] | None: ...
    def put_back(self, request: Any) -> None: ...
    def admitted(self, request: Any, new: Admission, answer: Answer, held: Held | None) -> None: ...
    def take(self, granted: Sequence[Held], *, reserved: int) -> None: ...
    def hear(self, answer: Answer) -> None: ...
    def lose_store(self, error: StoreUnavailableError) -> None: ...
    @property
    def is_brokers_turn(self) -> bool: ...


class Step(NamedTuple):
    """A settlement under way: its lease, whether a slot is in hand for what it brings, and the message that follows."""

    held: Held
    slot: bool
    following: tuple[Any, Admission] | None


class Settling:
    """One worker's settlements.

    With ``defers``, where all ends come in the event loop's own thread, an answer is awaited by ``complete_all``.
    """

    def __init__(
        self,
        starter: Starter,
        *,
        lane: Lane,
        slots: Slots,
        intake: Intake,
        due: Callable[[float], None],
        defers: bool,
    ) -> None:
        self._starter, self._lane, self._slots, self._intake = starter, lane, slots, intake
        self._due, self._defers = due, defers
        self._under_way: deque[Step] = deque()
        self._unsettled: deque[Held] = deque()
        self._dying: deque[Held] = deque()

    def finish(self, request: Any, end: End) -> None:
        """A run ended so. Settles now, or when its child process is gone (F14); starts nothing."""
        held: Held = request.held
        if held.end is None:
            self.end(held, end)
        elif held in self._dying and request.reported:
            self._dying.remove(held)
            self._settle(held)

    def end(self, held: Held, end: End) -> None:
        """A lease ends so, with or without a run."""
        held.end = as_it_was(held, end)
        if held.dispatched:
            self._slots.ended()
        else:
            self._slots.give_back()
        if held.dispatched and held.request.killed and self._intake.child_lives(held.request):
            self._dying.append(held)
            # The heartbeat looks often from now on whether the child is gone.
            self._due(0.0)
        else:
            self._settle(held)

    def settle_next(self) -> bool:
        """Settle one that could not be settled before; False where there is none."""
        if not self._unsettled:
            return False
        self._settle(self._unsettled.popleft())
        return True

    def settle_rest(self) -> bool:
        """Settle all that could not be settled before, if the store answers; whether nothing is left."""
        for _ in range(len(self._unsettled)):
            self._settle(self._unsettled.popleft())
        return not self._unsettled

    def complete_all(self) -> None:
        """Get the answers to all that is under way."""
        while self._under_way:
            self._conclude(self._under_way.popleft(), self._lane.complete)

    def bury(self) -> bool:
        """Settle those whose child process is gone by now; whether there were any."""
        gone = [held for held in self._dying if not self._intake.child_lives(held.request)]
        for held in gone:
            self._dying.remove(held)
            self._settle(held)
        return bool(gone)

    @property
    def waits_for_children(self) -> bool:
        """Whether a run is marked as ended while its child process may still live."""
        return bool(self._dying)

    def _settle(self, held: Held) -> None:
        """Settle a lease; the slot that is free now goes to what the store hands on, or to the next in line."""
        starter = self._starter
        if starter.away:
            self._unsettled.append(held)
            return
        slot = not starter.closing and self._slots.reserve()
        following = starter.next_in_line() if slot else None
        want = int(slot and not (following and starter.is_brokers_turn))
        new = replace(following[1], shares_slot=True) if following else None
        step = Step(held, slot, following)
        call = (held, self._intake.ending(held), want, self._intake.queues, new)
        if self._defers and not starter.closing:
            # Redis works on it while the event loop goes on; drain() gets the answer.
            self._lane.begin(*call)
            self._under_way.append(step)
            return
        self.complete_all()
        self._conclude(step, lambda: self._lane.settle(*call))

    def _conclude(self, step: Step, get: Callable[[], Settlement]) -> None:
        try:
            settlement = get()
        except StoreUnavailableError as error:
            for unanswered in (step, *self._under_way):
                self._undo(unanswered)
            self._under_way.clear()
            self._starter.lose_store(error)
            return
        self._settled(step.held, settlement.answer)
        granted = settlement.granted
        if step.following is not None and not granted and settlement.admitted is not None:
            self._starter.admitted(*step.following, settlement.admitted, settlement.lease)
            return
        if step.following is not None:
            self._starter.put_back(step.following[0])
        self._starter.take(granted, reserved=int(step.slot))

    def _undo(self, step: Step) -> None:
        """No answer came: settle it again later, and let the message that followed wait again."""
        step.held.asked_before = True
        self._unsettled.append(step.held)
        if step.following is not None:
            self._starter.put_back(step.following[0])
        if step.slot:
            self._slots.give_back()

    def _settled(self, held: Held, answer: Answer) -> None:
        self._starter.hear(answer)
        if answer.status in UNANSWERED:
            held.asked_before = True
            self._unsettled.append(held)
            return
        if held.request is not None:
            held.request.acknowledged = True
        if answer.status == "STALE" and not held.asked_before:
            emit("stale_settle", logging.WARNING, attempt=held.attempt, token=held.token)
