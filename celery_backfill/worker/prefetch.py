"""What runs under a lease counts against the worker's prefetch, as an unacked task does with ``acks_late``.

A leased task is acked when the store has it, which would make room for one more message. While no slot is free that
message would wait here, although an idle worker could run it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.transport.virtual import QoS


def count_running(consumer: Any, running: Callable[[], int]) -> None:
    """Have this connection's channel read no message while what runs and what is prefetched reach the prefetch count.

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
