"""Workers and connections lost, RabbitMQ restarted: each task runs once, and keeps its permits meanwhile."""

from __future__ import annotations

import signal
import time
from functools import partial

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place
from tests.worker.rabbit import send_as_others_do
from tests.worker.rabbit_node import Node
from tests.worker.workers import Worker

BOTH = [("classic", "prefork"), ("quorum", "threads")]


@pytest.mark.parametrize(("kind", "pool"), BOTH)
def test_a_killed_workers_tasks_run_elsewhere_once_more(open_rabbit: Opener, key: str, kind: str, pool: str) -> None:
    """C1: what ran has a stall and runs again; what it had only prefetched comes from RabbitMQ and has none."""
    place = open_rabbit(kind)
    first = place.worker(pool=pool, concurrency=2)
    lost = place.send_many(2, "two", key, until=key)
    place.wait_started(*lost)
    blocked = place.send_many(2, "two", key)
    prefetched = place.send_many(3, "free", f"{key}-free")
    place.wait_counts(running=2, blocked=0)
    wait_until(lambda: len(place.unacked()) == 5, "they are prefetched")
    place.worker(pool=pool, concurrency=4)
    first.kill()
    place.wait_runs(4, key)
    assert {run.task_id for run in place.marks.runs(key)[2:]} == set(lost)
    assert [place.record(task_id)["stalls"] for task_id in lost] == ["1", "1"]
    assert place.held(key) == 2
    place.touch(key)
    place.wait_ended(*lost, *blocked, *prefetched)
    place.wait_empty()
    assert [len(place.marks.runs_of(task_id)) for task_id in (*lost, *blocked, *prefetched)] == [2, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("kind", "pool"), [*BOTH, ("classic", "threads")])
def test_a_broker_reconnect_doubles_and_loses_nothing(open_rabbit: Opener, key: str, kind: str, pool: str) -> None:
    """C15, F7: with some running, some blocked and some prefetched; twice in a row."""
    place = open_rabbit(kind)
    assert place.tap is not None
    worker = place.worker(pool=pool, concurrency=3, prefetch=3)
    ids = _some_of_each(place, key)
    for lost in (1, 2):
        assert place.tap.cut()
        worker.wait_says("Connected to", lost + 1)
        wait_until(lambda: len(place.unacked()) == 5, "the prefetched have come again")
        assert place.inspector.counts().running == 3
        assert place.held(key) == 1
    _end_all(place, worker, key, ids)


@pytest.mark.slow
def test_a_restart_of_rabbitmq_doubles_and_loses_nothing(open_rabbit: Opener, rabbit_node: Node, key: str) -> None:
    """C15: what runs goes on, under its permits, while there is no broker; what ends meanwhile has ended once."""
    places: list[tuple[Place, Worker, list[str]]] = []
    for kind, pool in BOTH:
        place = open_rabbit(kind, amqp_url=rabbit_node.url)
        worker = place.worker(pool=pool, concurrency=3, prefetch=3)
        places.append((place, worker, _some_of_each(place, key)))
    with rabbit_node.stopped():
        for place, worker, ids in places:
            worker.wait_says("Trying again")
            assert place.held(key) == 1
            place.touch(key)
            wait_until(partial(place.has_ended, ids[0]), "it ends while there is no broker")
    for place, worker, ids in places:
        worker.wait_says("Connected to", 2, timeout=30)
        _end_all(place, worker, key, ids)


@pytest.mark.parametrize("producer", ["ours", "another"])
def test_a_crash_between_store_and_ack_makes_a_duplicate_that_is_dropped(
    open_rabbit: Opener, key: str, producer: str
) -> None:
    """C17, F2: the store has the message, RabbitMQ delivers it again. Also one that has no id of ours."""
    place = open_rabbit("classic")
    first = place.worker(concurrency=1, environ={"SHOP_FAULT": "die_before_the_brokers_ack"})
    task_id = f"{key}-id"
    if producer == "ours":
        place.send("one", key, options={"task_id": task_id})
    else:
        send_as_others_do(place.app, "shop.one", key, task_id=task_id)
    wait_until(lambda: first.has_ended, "it dies")
    assert place.record(task_id)["state"] == "running"
    wait_until(lambda: place.messages.ready(place.queue) == 1, "RabbitMQ has it again")
    place.worker(concurrency=2)
    place.wait_ended(task_id)
    place.wait_empty()
    # The first worker died before it had started it.
    assert len(place.marks.runs_of(task_id)) == 1
    if producer == "another":
        send_as_others_do(place.app, "shop.one", key, task_id=task_id)
        place.wait_runs_of(task_id, 2)


@pytest.mark.parametrize(("kind", "pool"), BOTH)
def test_what_has_not_started_runs_elsewhere_at_once(open_rabbit: Opener, key: str, kind: str, pool: str) -> None:
    """S1: at a warm shutdown what is prefetched goes back to RabbitMQ, what is blocked stays in the store."""
    place = open_rabbit(kind)
    first = place.worker(pool=pool, concurrency=2, prefetch=4)
    running = [place.send("one", key, until=key), place.send("free", f"{key}-free", until=key)]
    place.wait_started(*running)
    blocked = place.send_many(3, "one", key)
    others = place.send_many(3, "free", f"{key}-free")
    wait_until(lambda: len(place.unacked()) == 6, "they are prefetched")
    place.worker(pool=pool, concurrency=2)
    stopped = time.monotonic()
    first.signal(signal.SIGTERM)
    place.wait_ended(*others)
    assert not first.has_ended
    assert max(run.started for run in place.marks.runs(f"{key}-free")) - stopped < 5.0
    place.wait_counts(running=2, blocked=3)
    place.touch(key)
    place.wait_ended(*running, *blocked)
    first.wait_ended()
    place.wait_empty()
    ids = [*running, *blocked, *others]
    assert [len(place.marks.runs_of(task_id)) for task_id in ids] == [1] * len(ids)
    assert largest_at_once(place.marks.runs(key)) == 1


def _some_of_each(place: Place, key: str) -> list[str]:
    """For a worker of three slots and a prefetch of nine: three that run, three blocked, five prefetched."""
    holder = place.send("one", key, until=key)
    place.wait_started(holder)
    blocked = place.send_many(3, "one", key)
    place.wait_counts(running=1, blocked=3)
    others = place.send_many(2, "free", f"{key}-free", until=f"{key}-free")
    place.wait_started(*others)
    prefetched = place.send_many(5, "two", f"{key}-two", 0.05)
    wait_until(lambda: len(place.unacked()) == 5, "they are prefetched")
    return [holder, *blocked, *others, *prefetched]


def _end_all(place: Place, worker: Worker, key: str, ids: list[str]) -> None:
    """Each has run once, within its limit, and the worker has all of its slots."""
    place.touch(key)
    place.touch(f"{key}-free")
    place.wait_ended(*ids)
    place.wait_empty()
    assert sorted(run.task_id for run in place.marks.runs()) == sorted(ids)
    assert largest_at_once(place.marks.runs(key)) == 1
    assert largest_at_once(place.marks.runs(f"{key}-two")) <= 2
    slots = f"{key}-slots"
    # Again where the sender's own connection has been lost.
    more = place.send_many(4, "free", slots, until=slots, options={"retry": True})
    wait_until(lambda: len(place.marks.runs(slots)) == 3, "three run")
    place.touch(slots)
    place.wait_ended(*more)
    assert largest_at_once(place.marks.runs(slots)) == 3
    assert not worker.has_ended
