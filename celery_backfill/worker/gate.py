"""The gate: between the messages a worker has and the slots it has.

It keeps its own line of prefetched messages and drains it in a flat loop: nothing is started from inside a finish
callback or a slot's release (F6). With no free slot it takes nothing, from the store or from the broker. While both
have something, slots go to them in turn (F8).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple

from celery.exceptions import TaskRevokedError, WorkerLostError
from celery.worker import state

from ..errors import InvalidKeyError, StoreUnavailableError
from ..events import emit, logger
from ..leases.store import Admission, Answer
from .ends import GIVEN_BACK, End, Reason, dead
from .intake import Intake
from .lane import Held, Lane, Settlement
from .slots import Slots

STEPS_A_DRAIN = 100
UNANSWERED = ("OLD", "LATER")


class _Settling(NamedTuple):
    """A settlement under way: its lease, whether a slot is in hand for what it brings, and the message that follows."""

    held: Held
    slot: bool
    following: tuple[Any, Admission] | None


class Gate:
    """One worker's gate. ``wake`` has ``drain`` called soon, from any thread; ``due`` is told of what is scheduled.

    With ``defers``, where all ends come in the event loop's own thread, a settlement's answer is awaited by ``drain``.
    """

    def __init__(
        self,
        *,
        lane: Lane,
        slots: Slots,
        intake: Intake,
        pool: Any,
        wake: Callable[[], None],
        due: Callable[[float], None],
        defers: bool = False,
    ) -> None:
        self._lane, self._slots, self._intake, self._pool = lane, slots, intake, pool
        self._wake, self._due, self._defers = wake, due, defers
        self._settling: deque[_Settling] = deque()
        self._line: deque[Any] = deque()
        self._granted: deque[Held] = deque()
        self._ready: deque[Any] = deque()
        self._unsettled: deque[Held] = deque()
        self._dying: deque[Held] = deque()
        self._store_has_more = True
        self._brokers_turn = True
        self._drain_lock = Lock()
        self._drain_again = False
        self.closing = False
        self.away = False

    # What comes in.

    def offer(self, request: Any) -> None:
        """A request from Celery's strategy: from the broker, or one we fed it from the store."""
        (self._line if request.held is None else self._ready).append(request)
        self._wake()

    def attach(self, consumer: Any) -> None:
        """A new connection to the broker: what was prefetched on the old one comes again (F7)."""
        self._line.clear()
        self._slots.reset()
        self._intake.attach(consumer)
        self._give_back_dropped()
        self._wake()

    def tick(self) -> None:
        """Once a second, and when something scheduled is due: there may be work that nobody told of."""
        self._store_has_more = True
        self._wake()

    def back(self) -> None:
        """The store answers again."""
        if self.away:
            self.away = False
            emit("store_back", logging.WARNING)
            self.tick()

    # What ends.

    def finish(self, request: Any, end: End) -> None:
        """A run ended so. Settles now, or when its child process is gone (F14); starts nothing."""
        held: Held = request.held
        if held.end is None:
            self._end(held, end)
        elif held in self._dying and request.reported:
            self._dying.remove(held)
            self._settle(held)
        self._wake()

    def _end(self, held: Held, end: End) -> None:
        held.end = end
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

    def lost(self, leases: Sequence[tuple[str, int]]) -> None:
        """(attempt, token) leases that a renewal found lost: another run has the attempt, or it was settled."""
        for held in self._lane.mark_lost(leases):
            if held.end is None:
                emit("lease_lost", logging.WARNING, attempt=held.attempt, token=held.token)

    def _settle(self, held: Held) -> None:
        """Settle a lease; the slot that is free now goes to what the store hands on, or to the next in line."""
        if self.away:
            self._unsettled.append(held)
            return
        slot = not self.closing and self._slots.reserve()
        following = self._next_in_line() if slot else None
        want = int(slot and not (following and self._brokers_turn))
        new = replace(following[1], shares_slot=True) if following else None
        step = _Settling(held, slot, following)
        call = (held, self._intake.ending(held), want, self._intake.queues, new)
        if self._defers and not self.closing:
            # Redis works on it while the event loop goes on; drain() gets the answer.
            self._lane.begin(*call)
            self._settling.append(step)
            return
        self._complete_all()
        self._conclude(step, lambda: self._lane.settle(*call))

    def _complete_all(self) -> None:
        while self._settling:
            self._conclude(self._settling.popleft(), self._lane.complete)

    def _conclude(self, step: _Settling, get: Callable[[], Settlement]) -> None:
        try:
            settlement = get()
        except StoreUnavailableError as error:
            for unanswered in (step, *self._settling):
                self._undo(unanswered)
            self._settling.clear()
            self._lose_store(error)
            return
        self._settled(step.held, settlement.answer)
        granted = settlement.granted
        if step.following is not None and not granted and settlement.admitted is not None:
            self._admitted(*step.following, settlement.admitted, settlement.lease)
            return
        if step.following is not None:
            self._line.appendleft(step.following[0])
        self._take(granted, reserved=int(step.slot))

    def _undo(self, step: _Settling) -> None:
        """No answer came: settle it again later, and let the message that followed wait again."""
        step.held.asked_before = True
        self._unsettled.append(step.held)
        if step.following is not None:
            self._line.appendleft(step.following[0])
        if step.slot:
            self._slots.give_back()

    def _next_in_line(self) -> tuple[Any, Admission] | None:
        """The next message of the broker, as an admission; None where there is none, or one that has no valid key."""
        try:
            request = self._line.popleft()
        except IndexError:
            return None
        try:
            return request, self._intake.admission(request)
        except InvalidKeyError:
            self._line.appendleft(request)
            return None

    def _settled(self, held: Held, answer: Answer) -> None:
        self._hear(answer)
        if answer.status in UNANSWERED:
            held.asked_before = True
            self._unsettled.append(held)
            return
        if held.request is not None:
            held.request.acknowledged = True
        if answer.status == "STALE" and not held.asked_before:
            emit("stale_settle", logging.WARNING, attempt=held.attempt, token=held.token)
        elif answer.status == "POISON":
            held.request.announce_failure(WorkerLostError(held.end.failure["exception_message"]))

    # What starts.

    def drain(self) -> None:
        """Start what can be started now. Safe to call from any thread and from inside itself."""
        if not self._drain_lock.acquire(blocking=False):
            self._drain_again = True
            return
        try:
            self._drain_again = False
            busy = all(self._step() for _ in range(STEPS_A_DRAIN))
            if not busy:
                self._slots.rest()
        except Exception:
            busy = False
            logger.exception("the gate failed once; it goes on")
        finally:
            self._drain_lock.release()
        if busy or self._drain_again:
            self._wake()

    def _step(self) -> bool:
        """One thing to do; False when there is nothing."""
        if self._settling:
            self._complete_all()
        if self._ready:
            return self._start(self._ready.popleft())
        if self._granted:
            return self._feed(self._granted.popleft())
        if self._dying and self._bury():
            return True
        if self.away:
            return False
        if self._unsettled:
            self._settle(self._unsettled.popleft())
            return not self.away
        if self.closing or not (self._line or self._store_has_more):
            return False
        if not self._slots.reserve():
            self._slots.ask()
            return False
        if self._line and (self._brokers_turn or not self._store_has_more):
            return self._admit(self._line.popleft())
        return self._claim()

    def _admit(self, request: Any) -> bool:
        """Give the store the next message, with a slot in hand for it."""
        try:
            new, refused = self._intake.admission(request), None
        except InvalidKeyError as error:
            new, refused = self._intake.admission(request, limited=False), error
        try:
            answer, held = self._lane.admit(new)
        except StoreUnavailableError as error:
            self._line.appendleft(request)
            self._slots.give_back()
            self._lose_store(error)
            return False
        self._admitted(request, new, answer, held)
        if held is not None and refused is not None:
            self._ready.remove(request)
            request.fail_unstarted(refused, Reason.INVALID)
        return True

    def _admitted(self, request: Any, new: Admission, answer: Answer, held: Held | None) -> None:
        """The store has answered for a message: it is ready to run in the slot in hand, or it is not ours to hold."""
        self._hear(answer)
        if answer.status in UNANSWERED:
            self._line.appendleft(request)
            self._slots.give_back()
            return
        self._intake.acknowledge(request, acked=bool(new.delivery_tag))
        self._brokers_turn = False
        if held is None:
            self._slots.give_back()
            state.task_ready(request)
            return
        held.request, request.held = request, held
        self._ready.append(request)

    def _claim(self) -> bool:
        """Ask the store for the slot in hand."""
        try:
            answer, granted = self._lane.claim(1, self._intake.queues)
        except StoreUnavailableError as error:
            self._slots.give_back()
            self._lose_store(error)
            return False
        self._hear(answer)
        self._take(granted, reserved=1)
        self._store_has_more = bool(granted) and answer.more
        return True

    def _take(self, granted: Sequence[Held], *, reserved: int) -> None:
        for _ in range(reserved - len(granted)):
            self._slots.give_back()
        if granted:
            self._brokers_turn = True
            self._granted.extend(granted)

    def _feed(self, held: Held) -> bool:
        """Give a stored message to Celery's strategy, which makes its request and offers it to us again."""
        if self.closing or held.lost:
            self._end(held, GIVEN_BACK)
            return True
        try:
            self._intake.feed(held)
        except Exception as error:
            emit("message_unreadable", logging.ERROR, attempt=held.attempt, error=error)
            self._end(held, dead(Reason.INVALID, error))
        return True

    def _start(self, request: Any) -> bool:
        """Run a leased request in the slot in hand, unless its lease was lost while it waited here."""
        held: Held = request.held
        if held.end is not None:
            # Given back at a reconnect while another thread brought it here.
            return True
        if self.closing or held.lost:
            self._end(held, GIVEN_BACK)
            return True
        try:
            request.execute_using_pool(self._pool)
        except TaskRevokedError:
            # The revocation itself has called finish().
            pass
        except Exception as error:
            emit("not_started", logging.ERROR, attempt=held.attempt, error=error)
            request.fail_unstarted(error, Reason.INTERNAL)
        return True

    # What is given back.

    def close(self) -> None:
        """Take nothing more, and give back what has not started: it stalls nothing and burns no retry."""
        self.closing = True
        self._complete_all()
        while self._line:
            self._intake.give_back(self._line.popleft())
        self._granted.clear()
        self._ready.clear()
        for held in self._lane.held():
            if held.end is None and not held.dispatched:
                self._end(held, GIVEN_BACK)

    def pool_ended(self) -> None:
        """The pool has stopped: give back what it never started, or what cannot go on in its dead processes."""
        self.close()
        for held in self._lane.held():
            if held.end is None and self._intake.over_for_sure(held.request):
                self._end(held, GIVEN_BACK)
        self._dying.clear()

    def settle_rest(self) -> bool:
        """Settle what could not be settled before, if the store answers; whether nothing is left."""
        self.away = False
        for _ in range(len(self._unsettled)):
            self._settle(self._unsettled.popleft())
        return not self._unsettled

    def _give_back_dropped(self) -> None:
        """At a reconnect Celery drops, without a word, jobs that no process had accepted and requests in timers."""
        waiting = {*self._granted, *(request.held for request in self._ready)}
        for held in self._lane.held():
            if held.end is None and held not in waiting and self._intake.dropped(held):
                self._end(held, GIVEN_BACK)

    def _bury(self) -> bool:
        """Settle those whose child process is gone by now."""
        gone = [held for held in self._dying if not self._intake.child_lives(held.request)]
        for held in gone:
            self._dying.remove(held)
            self._settle(held)
        return bool(gone)

    @property
    def waits_for_children(self) -> bool:
        """Whether a run is marked as ended while its child process may still live."""
        return bool(self._dying)

    @property
    def held(self) -> int:
        """How many leases this worker has."""
        return len(self._lane)

    # What the heartbeat asks.

    def snapshot(self) -> tuple[int, list[tuple[str, int]]]:
        """The last nonce answered and every lease held by then: what a renewal names."""
        return self._lane.snapshot()

    # What is known of the store.

    def _hear(self, answer: Answer) -> None:
        self._store_has_more = self._store_has_more or answer.more
        if answer.due_in is not None:
            self._due(answer.due_in)

    def _lose_store(self, error: StoreUnavailableError) -> None:
        if not self.away:
            self.away = True
            emit("store_away", logging.ERROR, error=error)
