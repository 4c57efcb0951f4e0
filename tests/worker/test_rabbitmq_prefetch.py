"""How much leaves RabbitMQ: no more than a worker's slots and its prefetch, and nothing for a worker that is busy."""

from __future__ import annotations

import time

import pytest

from tests.waiting import wait_until
from tests.worker.place import Opener, Place
from tests.worker.rabbit_node import Node

MANY = 10_000


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork"])
def test_a_worker_takes_no_more_than_its_slots_and_its_prefetch(open_rabbit: Opener, key: str, pool: str) -> None:
    """L22: 10,000 tasks without a limit, two slots, a prefetch of eight."""
    place = open_rabbit("classic")
    place.worker(pool=pool, concurrency=2, prefetch=4)
    holders = place.send_many(2, "free", key, until=key)
    place.wait_started(*holders)
    place.send_many(MANY, "free", key)
    # What runs counts as prefetched, as in plain Celery with acks_late.
    wait_until(lambda: len(place.unacked()) == 6, "the prefetch is full")
    wait_until(lambda: place.messages.ready(place.queue) == MANY - 6, "all others are in the queue")
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        # Over some beats of the worker: each wakes its gate.
        assert place.messages.ready(place.queue) == MANY - 6
    assert place.inspector.counts().running == 2
    place.messages.purge(place.queue)
    place.touch(key)
    place.wait_ended(*holders)
    place.wait_empty(timeout=20)
    assert len(place.marks.runs(key)) == 2 + 6


@pytest.mark.parametrize(
    ("kind", "pool"),
    [("classic", "prefork"), ("quorum", "prefork"), ("classic", "threads"), ("classic", "gevent"), ("classic", "solo")],
)
def test_an_idle_worker_runs_the_next_at_once_while_another_is_busy(
    open_rabbit: Opener, key: str, kind: str, pool: str
) -> None:
    """L22a: prefetch 1, one slot each; whichever of the two it is that is busy."""
    place = open_rabbit(kind)
    place.workers(2, pool=pool, concurrency=1, prefetch=1)
    for turn in ("first", "second", "third"):
        holder = place.send("free", key, until=f"{key}-{turn}")
        place.wait_started(holder)
        wait_until(lambda: not place.unacked(), "what runs is acked")
        for _ in range(5):
            sent = time.monotonic()
            (run,) = place.wait_started(place.send("free", key))
            assert run.started - sent < 1.0
        place.touch(f"{key}-{turn}")
        place.wait_ended(holder)
    place.wait_empty()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_full_worker_is_sent_nothing_and_short_tasks_cost_nothing(open_rabbit: Opener, key: str, pool: str) -> None:
    """L22a: with a prefetch of 1. Its consumers are cancelled for long tasks only."""
    place = open_rabbit("classic")
    assert place.tap is not None
    place.worker(pool=pool, concurrency=2, prefetch=1)
    place.wait_ended(*place.send_many(200, "free", key))
    place.wait_empty()
    counts = place.tap.counts
    assert counts["ack"] == counts["deliver"] == 200
    assert counts["cancel"] <= 20
    holders = place.send_many(2, "free", key, until=key)
    place.wait_started(*holders)
    wait_until(lambda: not place.unacked(), "what runs is acked")
    more = place.send_many(4, "free", key)
    _stays(place, ready=4)
    place.touch(key)
    place.wait_ended(*more)
    place.wait_empty()


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [1, 4])
def test_a_task_longer_than_the_consumer_timeout_runs_once(
    open_rabbit: Opener, rabbit_node: Node, key: str, prefetch: int
) -> None:
    """RabbitMQ closes the channel of who leaves a message unacked for too long: one that waits behind the long task.

    With a prefetch of 1 there is none. Otherwise Celery has to be told to begin again.
    """
    with rabbit_node.impatient(1.0):
        place = open_rabbit("classic", amqp_url=rabbit_node.url, conf={"broker_channel_error_retry": prefetch > 1})
        worker = place.worker(concurrency=1, prefetch=prefetch)
        long = place.send("free", key, 4.0)
        place.wait_started(long)
        behind = place.send("free", key)
        place.wait_ended(long, behind)
        place.wait_empty()
    assert place.marks.order(key) == [long, behind]
    assert (worker.count("Connected to") == 1) == (prefetch == 1)


def test_a_full_worker_takes_nothing_on_a_new_connection(open_rabbit: Opener, key: str) -> None:
    """L22a, C15: prefetch 1; it consumes again when a slot is free."""
    place = open_rabbit("classic")
    worker = place.worker(concurrency=2, prefetch=1)
    holders = place.send_many(2, "free", key, until=key)
    place.wait_started(*holders)
    wait_until(lambda: not place.unacked(), "what runs is acked")
    waiting = place.send_many(3, "free", key)
    assert place.tap is not None
    place.tap.cut()
    worker.wait_says("Connected to", 2)
    _stays(place, ready=3)
    place.touch(key)
    place.wait_ended(*waiting)
    place.wait_empty()
    assert sorted(run.task_id for run in place.marks.runs(key)) == sorted([*holders, *waiting])


def _stays(place: Place, *, ready: int) -> None:
    """So many are in the queue, over some beats of the worker."""
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert (place.messages.ready(place.queue), place.unacked()) == (ready, [])
