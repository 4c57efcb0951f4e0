"""RabbitMQ as the broker: limits, order, retries and identity on classic and quorum queues."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place
from tests.worker.rabbit import send_as_others_do

KINDS = ("classic", "quorum")


@pytest.fixture(scope="module")
def shops(open_shared_rabbit: Opener) -> Callable[[str], Place]:
    """A place with two workers, one of each pool, for each kind of queue."""
    opened: dict[str, Place] = {}

    def shop(kind: str) -> Place:
        if kind not in opened:
            opened[kind] = open_shared_rabbit(kind)
            for pool in ("prefork", "threads"):
                opened[kind].worker(pool=pool, concurrency=2, ready=False)
            for worker in opened[kind].crew.all:
                worker.wait_ready()
        return opened[kind]

    return shop


@pytest.fixture(params=KINDS)
def shop(shops: Callable[[str], Place], request: pytest.FixtureRequest) -> Place:
    return shops(request.param)


def test_many_at_once_run_once_within_their_limit(shop: Place, key: str) -> None:
    """L8: 200 tasks of one key at four slots."""
    ids = shop.send_many(200, "three", key, 0.01, value=7)
    shop.wait_ended(*ids, timeout=60)
    runs = shop.marks.runs(key)
    assert sorted(run.task_id for run in runs) == sorted(ids)
    assert largest_at_once(runs) == 3
    assert shop.value(shop.app.AsyncResult(ids[-1])) == 7
    shop.wait_empty()


def test_a_blocked_task_takes_no_slot(shop: Place, key: str) -> None:
    """L20: with fifty blocked and a slot taken, another key's task has the next; RabbitMQ has none of them any more."""
    holder = shop.send("one", key, until=key)
    shop.wait_started(holder)
    blocked = shop.send_many(50, "one", key)
    other = shop.send("one", f"{key}-other")
    shop.wait_ended(other)
    shop.wait_counts(running=1, blocked=50)
    wait_until(lambda: not shop.unacked(), "all are acked")
    shop.touch(key)
    shop.wait_ended(*blocked)
    runs = shop.marks.runs(key)
    assert sorted(run.task_id for run in runs) == sorted([holder, *blocked])
    assert largest_at_once(runs) == 1
    shop.wait_empty()


def test_headers_are_stored_once(shop: Place, key: str) -> None:
    """RabbitMQ delivers them as headers, and once more as a property."""
    task_id = shop.send("one", key, until=key)
    shop.wait_started(task_id)
    assert shop.record(task_id)["message"].count('"origin"') == 1
    shop.touch(key)
    shop.wait_ended(task_id)


def test_retries_are_the_stores_and_publish_nothing(shop: Place, key: str) -> None:
    assert shop.tap is not None
    published = shop.tap.counts["publish"]
    task_id = shop.send("flaky", key, 2)
    shop.wait_state(task_id, "SUCCESS")
    assert [run.retries for run in shop.marks.runs_of(task_id)] == [0, 1, 2]
    failing = shop.send("flaky", key)
    assert shop.wait_letter(failing)["reason"] == "exhausted"
    assert shop.tap.counts["publish"] == published
    shop.wait_empty()


def test_of_what_is_blocked_the_highest_priority_runs_first(shop: Place, key: str) -> None:
    """F12: on RabbitMQ priority 0 is the lowest."""
    holder = shop.send("one", key, until=key)
    shop.wait_started(holder)
    sent: list[tuple[int, str]] = []
    for priority in (0, 9, 3, 10, 3, 9, 0):
        sent.append((priority, shop.send("one", key, options={"priority": priority})))
        shop.wait_counts(running=1, blocked=len(sent))
    shop.touch(key)
    shop.wait_ended(*(task_id for _, task_id in sent))
    assert shop.marks.order(key)[1:] == [task_id for _, task_id in sorted(sent, key=lambda pair: -pair[0])]
    shop.wait_empty()


def test_a_producer_without_the_library_may_send_a_task_twice(shop: Place, key: str) -> None:
    """F2: the same id and the same arguments, and no mark of a redelivery: two attempts."""
    send_as_others_do(shop.app, "shop.one", key, task_id=f"{key}-id", times=2)
    wait_until(lambda: len(shop.marks.runs(key)) == 2, "both run")
    shop.wait_empty()


def test_a_full_worker_waits_in_the_order_of_a_priority_queue(open_rabbit: Opener, key: str) -> None:
    """The queue's own order, before anything is in the store: a worker reads no further than it can run."""
    place = open_rabbit("classic", conf={"task_queue_max_priority": 10})
    sent = [(priority, place.send("free", key, options={"priority": priority})) for priority in (0, 9, 3, 9, 0, 3)]
    wait_until(lambda: place.messages.ready(place.queue) == len(sent), "all are in the queue")
    place.worker(concurrency=1, prefetch=1)
    place.wait_ended(*(task_id for _, task_id in sent))
    assert place.marks.order(key) == [task_id for _, task_id in sorted(sent, key=lambda pair: -pair[0])]
    place.wait_empty()


def test_what_rabbitmq_itself_has_delayed_is_of_the_queue_it_came_through(open_rabbit: Opener, key: str) -> None:
    """F10: on a quorum queue what has a countdown comes with a routing key of another form; here it is blocked then."""
    place = open_rabbit("quorum", conf={"task_default_exchange_type": "topic"})
    place.worker(concurrency=2)
    holder = place.send("one", key, until=key)
    place.wait_started(holder)
    late = place.send("one", key, options={"countdown": 1})
    place.wait_counts(running=1, blocked=1)
    place.touch(key)
    place.wait_ended(late)
    assert place.marks.order(key) == [holder, late]
    place.wait_empty()
