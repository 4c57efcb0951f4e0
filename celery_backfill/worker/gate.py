"""The gate: between the messages a worker has and the slots it has.

It keeps its own line of prefetched messages and drains it in a flat loop: nothing is started from inside a finish
callback or a slot's release (F6). With no free slot it takes nothing, from the store or from the broker. While both
have something, slots go to them in turn (F8).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from time import monotonic
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.worker import state

from ..errors import InvalidKeyError, StoreChangedError, StoreUnavailableError
from ..events import emit, logger
from ..leases.store import Admission, Answer
from .ends import GIVEN_BACK, End, Reason, dead
from .intake import Intake
from .lane import Held, Lane
from .outage import Outage
from .settling import UNANSWERED, Settling
from .slots import Slots
from .stopper import Stopper
from .target import Ticket

STEPS_A_DRAIN = 100


class Gate:
    """One worker's gate. ``wake`` has ``drain`` called soon, from any thread; ``due`` is told of what is scheduled.

    With ``defers``, where all ends come in the event loop's own thread, a settlement's answer is awaited by ``drain``.
    It begins with the store away: the heartbeat says when the worker has joined it.
    """

    def __init__(
        self,
        *,
        lane: Lane,
        slots: Slots,
        intake: Intake,
        pool: Any,
        stopper: Stopper,
        wake: Callable[[], None],
        due: Callable[[float], None],
        defers: bool = False,
    ) -> None:
        self._lane, self._slots, self._intake, self._pool = lane, slots, intake, pool
        self._stopper, self._wake, self._due = stopper, wake, due
        self._settling = Settling(self, lane=lane, slots=slots, intake=intake, due=due, defers=defers)
        self._line: deque[Any] = deque()
        self._granted: deque[Held] = deque()
        self._ready: deque[Any] = deque()
        self._suspect: Held | None = None
        self._store_has_more = True
        self._brokers_turn = True
        self._too_early = False
        self._drain_lock = Lock()
        self._drain_again = False
        self._outage = Outage("store_away", "store_back")
        self.closing = False
        #: A cold shutdown: what runs is to be ended, where the pool can.
        self.cold = False
        self.away = True

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
        self._store_has_more, self._too_early = True, False
        self._wake()

    # What ends.

    def finish(self, request: Any, end: End) -> None:
        """A run ended so; starts nothing."""
        self._settling.finish(request, end)
        self._stopper.watch()
        self._wake()

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
                self._intake.rest()
        except Exception:
            busy = False
            logger.exception("the gate failed once; it goes on")
        finally:
            self._drain_lock.release()
        if busy or self._drain_again:
            self._wake()

    def _step(self) -> bool:
        """One thing to do; False when there is nothing."""
        self._settling.complete_all()
        if self._suspect is not None and not self._suspect_may_run():
            return False
        if self._ready:
            return self._start(self._ready.popleft())
        if self._granted:
            return self._feed(self._granted.popleft())
        if self._settling.bury():
            return True
        if self.away:
            return False
        if self._settling.settle_next():
            return not self.away
        if self.closing or self._too_early or not (self._line or self._store_has_more):
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
            self.put_back(request)
            self._slots.give_back()
            self.lose_store(error)
            return False
        self.admitted(request, new, answer, held)
        if held is not None and refused is not None:
            self._ready.remove(request)
            request.fail_unstarted(refused, Reason.INVALID)
        return True

    def _claim(self) -> bool:
        """Ask the store for the slot in hand."""
        try:
            answer, granted = self._lane.claim(1, self._intake.queues)
        except StoreUnavailableError as error:
            self._slots.give_back()
            self.lose_store(error)
            return False
        self.hear(answer)
        self.take(granted, reserved=1)
        self._store_has_more = bool(granted) and answer.more
        return True

    def _feed(self, held: Held) -> bool:
        """Give a stored message to Celery's strategy, which makes its request and offers it to us again."""
        if self._may_not_start(held):
            self._settling.end(held, GIVEN_BACK)
            return True
        try:
            self._intake.feed(held)
        except Exception as error:
            emit("message_unreadable", logging.ERROR, attempt=held.attempt, error=error)
            self._settling.end(held, dead(Reason.INVALID, error))
        return True

    def _start(self, request: Any) -> bool:
        """Run a leased request in the slot in hand, unless its lease was lost while it waited here."""
        held: Held = request.held
        if held.end is not None:
            # Given back at a reconnect while another thread brought it here.
            return True
        if self._may_not_start(held):
            self._settling.end(held, GIVEN_BACK)
            return True
        if self._suspect is None and self._intake.is_suspect(held):
            self._suspect = held
            self._ready.appendleft(request)
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

    def _may_not_start(self, held: Held) -> bool:
        """Whether a lease is to be given back: the worker stops, or it may be somebody else's by now."""
        return self.closing or held.lost or held.until <= monotonic()

    def _suspect_may_run(self) -> bool:
        """After its last allowed stall an attempt runs alone in its worker: poison takes no neighbours along (F22)."""
        suspect = self._suspect
        assert suspect is not None
        if suspect.end is not None:
            self._suspect = None
            return True
        if any(held.runs for held in self._lane.held()):
            # It runs, or others do: what ends meanwhile is settled all the same.
            self._settling.bury()
            if not self.away:
                self._settling.settle_next()
            return False
        return True

    def dispatch(self, held: Held) -> Ticket:
        """A run is about to be given to the pool, with this."""
        held.dispatched = True
        self._stopper.watch()
        return self._stopper.ticket(held)

    # What settling asks for.

    def next_in_line(self) -> tuple[Any, Admission] | None:
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

    def put_back(self, request: Any) -> None:
        """A message is the next in line again."""
        self._line.appendleft(request)

    def admitted(self, request: Any, new: Admission, answer: Answer, held: Held | None) -> None:
        """The store has answered for a message: it is ready to run in the slot in hand, or it is not ours to hold."""
        self.hear(answer)
        if answer.status in UNANSWERED:
            self._too_early = answer.due_in is not None
            self.put_back(request)
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

    def take(self, granted: Sequence[Held], *, reserved: int) -> None:
        """Leases handed on to this worker, and how many slots were in hand for them."""
        for _ in range(reserved - len(granted)):
            self._slots.give_back()
        if granted:
            self._brokers_turn = True
            self._granted.extend(granted)

    @property
    def is_brokers_turn(self) -> bool:
        """Whether the next slot goes to the broker's messages."""
        return self._brokers_turn

    # What is given back.

    def go_cold(self) -> None:
        """A cold shutdown begins. Called in a signal handler: only notes it."""
        self.closing = self.cold = True

    def kill_running(self) -> None:
        """End what runs, where the pool can; it is given back when it is gone."""
        self.go_cold()
        for held in self._lane.held():
            if held.runs:
                held.request.kill(self._pool)

    def close(self) -> None:
        """Take nothing more, and give back what has not started: it stalls nothing and burns no retry."""
        self.closing = True
        self._settling.complete_all()
        while self._line:
            self._intake.give_back(self._line.popleft())
        self._granted.clear()
        self._ready.clear()
        for held in self._lane.held():
            if held.end is None and not held.dispatched:
                self._settling.end(held, GIVEN_BACK)

    def pool_ended(self) -> None:
        """The pool has stopped: give back what it never started, or what cannot go on in its dead processes."""
        self.close()
        self._settling.bury()
        for held in self._lane.held():
            if held.end is None and self._intake.over_for_sure(held.request):
                self._settling.end(held, GIVEN_BACK)

    def settle_rest(self) -> bool:
        """Settle what could not be settled before, if the store answers; whether nothing is left."""
        return not self.away and self._settling.settle_rest()

    def _give_back_dropped(self) -> None:
        """At a reconnect Celery drops, without a word, jobs that no process had accepted and requests in timers."""
        waiting = {*self._granted, *(request.held for request in self._ready)}
        for held in self._lane.held():
            if held.end is None and held not in waiting and self._intake.dropped(held):
                self._settling.end(held, GIVEN_BACK)

    # What is known of the store.

    @property
    def held(self) -> int:
        """How many leases this worker has."""
        return len(self._lane)

    @property
    def waits_for_children(self) -> bool:
        """Whether a run is marked as ended while its child process may still live."""
        return self._settling.waits_for_children

    def hear(self, answer: Answer) -> None:
        """What an answer says of work to come."""
        self._store_has_more = self._store_has_more or answer.more
        if answer.due_in is not None:
            self._due(answer.due_in)

    def lose_store(self, error: StoreUnavailableError) -> None:
        """The store does not answer, or this worker has to join it again: ask it nothing until it is back."""
        self.away = True
        if isinstance(error, StoreChangedError):
            # The heartbeat joins it at once.
            self._due(0.0)
        else:
            self._outage.failed(error, logging.ERROR)

    def back(self) -> None:
        """The store answers, and this worker has joined it."""
        if self.away:
            self.away = False
            self._outage.over()
            self.tick()
