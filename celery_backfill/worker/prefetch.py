"""How far a worker reads ahead of its turn: no further than with plain ``acks_late``, and no longer once it stops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

from kombu.transport.virtual import QoS


def count_running(consumer: Any, running: Callable[[], int]) -> None:
    """Have this connection's channel read no message while what runs and what is prefetched reach the prefetch count.

    A leased task is acked when the store has it, which would make room for one more message. While no slot is free that
    message would wait here, although an idle worker could run it at once.

    For brokers whose prefetch is kombu's own count (Redis); AMQP's has no number for "nothing now".
    """
    qos = getattr(consumer.task_consumer.channel, "qos", None)
    if not isinstance(qos, QoS):
        return
    can_consume = qos.can_consume

    def has_room() -> bool:
        prefetched = len(qos._delivered) - len(qos._dirty)
        return bool(can_consume()) and (not qos.prefetch_count or prefetched + running() < qos.prefetch_count)

    qos.can_consume = has_room


def finish_reading(consumer: Any) -> None:
    """Read what the broker is about to give to a worker that stops; waits a second at the most.

    On Redis a read stays open after the consumer is cancelled, until the last task has ended: a message that is given
    back would go straight into it.
    """
    channel: Any = getattr(getattr(consumer, "task_consumer", None), "channel", None)
    if getattr(channel, "_in_poll", None):
        with suppress(Empty, *consumer.connection_errors):
            channel._brpop_read()
