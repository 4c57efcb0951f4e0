"""What a worker reads from Redis, and when: at once when it has room, and nothing that it would not account for."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from tests.waiting import wait_until
from tests.worker.place import Place


@pytest.mark.parametrize("prefetch", [1, 2])
def test_without_an_event_loop_the_next_is_read_at_once(place: Place, key: str, prefetch: int) -> None:
    """L22a: kombu would wait for up to two seconds after each task."""
    place.worker(pool="gevent", concurrency=1, prefetch=prefetch)
    place.wait_ended(*place.send_many(20, "free", key))
    runs = place.marks.runs(key)
    waits = sorted(later.started - earlier.started for earlier, later in pairwise(runs))
    assert waits[len(waits) // 2] < 0.5
    place.wait_empty()


def test_a_message_read_while_the_store_fills_the_slot_is_with_the_worker(place: Place, key: str) -> None:
    """A read is under way when the slot is taken. What it brings is prefetched, so that a crash does not lose it."""
    elsewhere = f"{place.namespace}-elsewhere"
    place.worker(queues=(elsewhere,), concurrency=1)
    holder = place.send("one", key, until=key, options={"queue": elsewhere})
    place.wait_started(holder)
    place.worker(concurrency=1, prefetch=1)
    blocked = place.send("one", key, until=f"{key}-2")
    place.wait_counts(running=1, blocked=1)
    place.touch(key)
    place.wait_started(blocked)
    behind = place.send("free", key)
    sent = time.monotonic()
    # A read lasts a second.
    wait_until(lambda: time.monotonic() > sent + 1.5, "the read is over")
    assert place.messages.ready(place.queue) + len(place.unacked()) == 1
    place.touch(f"{key}-2")
    place.wait_ended(behind)
    place.wait_empty()
