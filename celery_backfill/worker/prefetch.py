"""How far a worker reads ahead of its turn: no further than with plain ``acks_late``, and no longer once it stops.

A leased task is acked when the store has it, which makes room at the broker for one more message. While no slot is free
that message would wait here, although an idle worker could run it at once. So what runs counts against the prefetch, as
it does in plain Celery.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from threading import Lock, get_ident
from time import monotonic
from typing import Any

from celery.bootsteps import RUN
from celery.concurrency.solo import TaskPool as SoloPool
from kombu.transport.pyamqp import Channel, amqp
from kombu.transport.virtual import QoS

from ..events import logger

#: For how long an ack may be held back. A task that ends sooner costs RabbitMQ no more than in plain Celery.
HOLD_SECONDS = 0.1
#: Queues that must not be without their consumer for a while.
KEEPS_CONSUMER = frozenset({"x-expires", "x-single-active-consumer"})

Running = Callable[[], int]


def count_running(consumer: Any, running: Running) -> None:
    """Count what runs against the prefetch of this connection, as its broker allows."""
    prefetch = consumer.backfill_prefetch = _kind(consumer)(consumer, running)
    prefetch.begin()


def finish_reading(consumer: Any) -> None:
    """The worker stops: nothing may be on its way here any more. Waits a second at the most."""
    prefetch: Prefetch | None = getattr(consumer, "backfill_prefetch", None)
    if prefetch is not None:
        prefetch.finish()


class Prefetch:
    """The prefetch of one connection, as Celery has it: for brokers that have no way to count in what runs."""

    def __init__(self, consumer: Any, running: Running) -> None:
        self._consumer, self._running = consumer, running

    def begin(self) -> None:
        """Consuming begins soon."""

    def acknowledge(self, request: Any) -> None:
        """Ack a message that the store has, or knows better of. From any thread."""
        request.on_ack(logger, request.connection_errors)

    def rest(self) -> None:
        """The gate has started what it could. In the gate's own thread."""

    def finish(self) -> None:
        """The worker stops, and consumes no more."""


class CountedPrefetch(Prefetch):
    """For brokers whose prefetch is kombu's own count: it reads nothing while that is reached."""

    def __init__(self, consumer: Any, running: Running) -> None:
        super().__init__(consumer, running)
        self._channel = consumer.task_consumer.channel
        self._qos = self._channel.qos
        self._kombus_own = self._qos.can_consume
        self._qos.can_consume = self._may_read

    def _may_read(self) -> bool:
        return self._has_room()

    def _has_room(self) -> bool:
        qos = self._qos
        prefetched = len(qos._delivered) - len(qos._dirty)
        reached = qos.prefetch_count and prefetched + self._running() >= qos.prefetch_count
        return bool(not reached and self._kombus_own())


class RedisPrefetch(CountedPrefetch):
    """Redis: a read under way has perhaps taken a message from its queue, so that its answer is read in any case."""

    def _may_read(self) -> bool:
        return bool(self._kombus_own()) if self._channel._in_poll else self._has_room()

    def rest(self) -> None:
        """Ask for a message as soon as there is room.

        An event loop has kombu do so at every turn. Without one (gevent, eventlet) it does so only when its wait for
        messages is over, which is after two seconds if it had asked for none.
        """
        channel, consumer = self._channel, self._consumer
        if consumer.hub is not None or consumer.blueprint.state != RUN or not self._has_room():
            return
        # Once kombu has asked on this connection, that wait listens to it.
        listened_to = (channel, "BRPOP") in channel.connection.cycle._fd_to_chan.values()
        if listened_to and channel.active_queues and not channel._in_poll:
            with suppress(*consumer.connection_errors):
                channel._brpop_start()

    def finish(self) -> None:
        """Read what Redis is about to give to us.

        A read stays open after the consumer is cancelled, until the last task has ended: a message that is given back
        would go straight into it.
        """
        channel: Any = getattr(getattr(self._consumer, "task_consumer", None), "channel", None)
        if getattr(channel, "_in_poll", None):
            with suppress(Empty, *self._consumer.connection_errors):
                channel._brpop_read()


class AmqpPrefetch(Prefetch):
    """RabbitMQ with a prefetch of more than the slots: it is made smaller by as many as can run.

    Acks go out in the gate's own thread: where there is an event loop, that thread reads from the connection too.
    """

    def __init__(self, consumer: Any, running: Running) -> None:
        super().__init__(consumer, running)
        self._task_consumer = consumer.task_consumer
        self._channel = consumer.task_consumer.channel
        self._errors = (*consumer.connection_errors, *consumer.channel_errors)
        self._lock = Lock()
        self._gates_thread: int | None = None
        #: What is to be acked, since when.
        self._unacked: deque[tuple[float, Any]] = deque()
        self._set_count = consumer.qos.callback
        consumer.qos.callback = self.set_count

    def begin(self) -> None:
        # Celery has made it smaller for tasks that outlived the connection before; RabbitMQ knows nothing of ours.
        self._consumer.qos.value = self._consumer.max_prefetch_count
        self._consumer.qos.update()

    def set_count(self, prefetch_count: int) -> None:
        """The prefetch is to be so many: when consuming begins, when Celery keeps messages for later (ETA)."""
        self._set_count(prefetch_count=max(1, prefetch_count - self._slots) if prefetch_count else 0)

    def acknowledge(self, request: Any) -> None:
        with self._lock:
            # A message of a connection that is lost comes again, and is known then.
            if request.message.channel is self._channel:
                self._unacked.append((monotonic(), request.message))
            if get_ident() == self._gates_thread:
                self._let_go()

    def rest(self) -> None:
        with self._lock:
            self._gates_thread = get_ident()
            self._let_go()

    def finish(self) -> None:
        with self._lock:
            self._ack(len(self._unacked))

    @property
    def _slots(self) -> int:
        return int(self._consumer.pool.num_processes)

    def _let_go(self) -> None:
        """Ack what may be acked by now."""
        self._ack(len(self._unacked))

    def _ack(self, number: int) -> None:
        for _ in range(number):
            # What could not be acked comes again. Who reads from the connection will see that it is lost.
            with suppress(*self._errors):
                self._unacked.popleft()[1].ack()


class PausingPrefetch(AmqpPrefetch):
    """RabbitMQ with a prefetch of as many as can run: while all slots are taken, nothing is to come.

    It has no prefetch of "none" (0 is no limit), and a consumer of a quorum queue keeps the prefetch it began with. So:

    - While there is no room, acks are held back: what is not acked fills the prefetch, as in plain Celery. Each end of
      a task makes room for an ack, and the ack for a message.
    - What was held back for ``HOLD_SECONDS`` is acked all the same, but first the consumers are cancelled, so that
      nothing comes of it.
    - When slots are free, and nothing is there to start, they begin to consume again, with a prefetch of as many.

    No answer of RabbitMQ is waited for.
    """

    def __init__(self, consumer: Any, running: Running) -> None:
        super().__init__(consumer, running)
        self._hold_seconds = 0.0 if isinstance(consumer.pool, SoloPool) else HOLD_SECONDS
        self._timed = False
        self._asked = False
        #: The prefetch of the consumers; 0 while there are none. The one that new ones will have.
        self._count = 0
        self._next_count = 0
        consumer.task_consumer.consume = self.consume

    def set_count(self, prefetch_count: int) -> None:
        self._set_count(prefetch_count=prefetch_count)
        with self._lock:
            # A message that Celery keeps for later has used up its part of the prefetch: begin again.
            self._next_count = 0
            self._pause()
            self._resume()

    def consume(self, no_ack: bool | None = None) -> None:
        """In the place of the consumer's own: from all its queues, when there are free slots."""
        with self._lock:
            self._asked = True
            self._pause()
            self._resume()

    def rest(self) -> None:
        super().rest()
        with self._lock:
            if self._count and (self._credit > self._room or self._free >= 2 * self._count):
                self._pause()
            if not self._count:
                self._resume()

    def finish(self) -> None:
        self._count = 0
        super().finish()

    def _let_go(self) -> None:
        if not self._count:
            self._ack(len(self._unacked))
            return
        self._ack(min(len(self._unacked), max(0, self._room - self._credit)))
        if self._unacked and not self._hold_seconds:
            self._pause()
        elif self._unacked and not self._timed:
            self._timed = True
            held_for = monotonic() - self._unacked[0][0]
            self._consumer.timer.call_after(max(0.0, self._hold_seconds - held_for), self._out_of_patience)

    def _out_of_patience(self) -> None:
        with self._lock:
            self._timed = False
            if self._unacked and monotonic() - self._unacked[0][0] >= self._hold_seconds:
                self._pause()
                self._resume()
            self._let_go()

    def _pause(self) -> None:
        """Cancel the consumers; then nothing can come of an ack."""
        tags = self._task_consumer._active_tags
        for queue in self._queues:
            if queue.name in tags:
                with suppress(*self._errors):
                    self._channel.send_method(amqp.spec.Basic.Cancel, "sb", (tags.pop(queue.name), False))
        self._count = 0
        self._ack(len(self._unacked))

    def _resume(self) -> None:
        """Consume with a prefetch of the free slots."""
        count = self._free
        if not count or not self._asked or self._consumer.blueprint.state != RUN:
            return
        task_consumer = self._task_consumer
        with suppress(*self._errors):
            if count != self._next_count:
                self._channel.send_method(amqp.spec.Basic.Qos, "lBb", (0, count, False))
            for queue in task_consumer.queues:
                task_consumer._basic_consume(queue, no_ack=task_consumer.no_ack, nowait=True)
        self._count = self._next_count = count

    @property
    def _free(self) -> int:
        return max(0, self._slots - self._running())

    @property
    def _room(self) -> int:
        """How many may come: each queue's consumer has a prefetch of its own."""
        return self._free * len(self._queues)

    @property
    def _credit(self) -> int:
        """How many RabbitMQ may still send, if none is on its way."""
        return self._count * len(self._queues) - len(self._unacked)

    @property
    def _queues(self) -> list[Any]:
        """Those that can be without their consumer for a while."""
        return [queue for queue in self._task_consumer.queues if _may_pause(queue)]


def _may_pause(queue: Any) -> bool:
    return not (queue.auto_delete or queue.expires or KEEPS_CONSUMER & set(queue.queue_arguments or ()))


def _kind(consumer: Any) -> type[Prefetch]:
    channel = consumer.task_consumer.channel
    if isinstance(channel, Channel):
        return PausingPrefetch if consumer.prefetch_multiplier == 1 else AmqpPrefetch
    if hasattr(channel, "_brpop_start"):
        return RedisPrefetch
    return CountedPrefetch if isinstance(getattr(channel, "qos", None), QoS) else Prefetch
