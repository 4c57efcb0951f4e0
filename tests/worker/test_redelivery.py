"""What the broker delivers again runs once."""

from __future__ import annotations

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place, in_database
from tests.worker.workers import Worker

#: The visibility timeout holds for all queues of one database, so that this one is apart from the other tests'.
DATABASE = 14
HASTY = {
    "broker_transport_options": {
        "visibility_timeout": 2,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
}
STORES = ("same", "apart")


@pytest.fixture(params=STORES)
def hasty(open_place: Opener, redis_server_url: str, request: pytest.FixtureRequest) -> Place:
    """A place whose broker delivers again after two seconds; its store is the same database, or another."""
    broker = in_database(redis_server_url, DATABASE)
    return open_place(redis_url=broker, store_url=None if request.param == "same" else redis_server_url, conf=HASTY)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_longer_than_the_visibility_timeout_runs_once(hasty: Place, key: str, pool: str) -> None:
    """C16, F4: and so do those prefetched behind it, though the broker gives them to a second worker meanwhile."""
    hasty.worker(pool=pool, concurrency=1, prefetch=4)
    long = hasty.send("one", key, 5.0)
    hasty.wait_started(long)
    behind = [hasty.send("one", f"{key}-{n}") for n in range(2)]
    wait_until(lambda: len(hasty.unacked()) == len(behind), "they are prefetched behind it")
    hasty.worker(pool=pool, concurrency=1, prefetch=1)
    hasty.wait_ended(long, *behind)
    last = hasty.send("one", key)
    hasty.wait_ended(last)
    # Another timeout and more, for what might still come.
    quiet = hasty.send("one", f"{key}-quiet", 3.5)
    hasty.wait_ended(quiet)
    hasty.wait_empty()
    assert [len(hasty.marks.runs_of(task_id)) for task_id in (long, *behind, last)] == [1] * 4


@pytest.mark.parametrize("hasty", ["same"], indirect=True)
def test_what_was_prefetched_and_delivered_again_to_the_same_worker_runs_once(hasty: Place, key: str) -> None:
    """F4: one worker alone."""
    hasty.worker(concurrency=1, prefetch=4)
    long = hasty.send("one", key, 5.0)
    hasty.wait_started(long)
    behind = [hasty.send("one", f"{key}-{n}") for n in range(2)]
    hasty.wait_ended(long, *behind)
    quiet = hasty.send("one", f"{key}-quiet", 3.5)
    hasty.wait_ended(quiet)
    hasty.wait_empty()
    assert [len(hasty.marks.runs_of(task_id)) for task_id in (long, *behind)] == [1] * 3


@pytest.mark.slow
def test_a_crash_between_store_and_broker_ack_makes_a_duplicate_that_is_dropped(
    open_place: Opener, redis_server_url: str, key: str
) -> None:
    """C17: the store has the message, the broker delivers it again."""
    place = open_place(redis_url=in_database(redis_server_url, DATABASE), store_url=redis_server_url, conf=HASTY)
    first = place.worker(concurrency=1, environ={"SHOP_FAULT": "die_before_the_brokers_ack"})
    task_id = place.send("free", key, until=f"{key}-go")
    wait_until(lambda: first.has_ended, "it dies")
    assert place.record(task_id)["state"] == "running"
    assert len(place.unacked()) == 1
    place.worker(concurrency=2)
    place.wait_started(task_id)
    wait_until(lambda: not place.unacked(), "the redelivery is acked")
    place.touch(f"{key}-go")
    place.wait_ended(task_id)
    place.wait_empty()
    assert len(place.marks.runs_of(task_id)) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("store", STORES)
def test_a_broker_reconnect_doubles_and_loses_nothing(
    open_place: Opener, redis_server_url: str, key: str, pool: str, store: str
) -> None:
    """F7, C15: with some running, some blocked and some prefetched; twice in a row."""
    options = {} if store == "same" else {"store_url": in_database(redis_server_url, DATABASE)}
    place = open_place(**options)
    name = f"broker-{place.namespace}"
    conf = {"broker_transport_options": {"client_name": name}}
    worker = place.worker(pool=pool, concurrency=3, prefetch=3, conf=conf)
    holder = place.send("one", key, until=key)
    place.wait_started(holder)
    blocked = place.send_many(3, "one", key)
    place.wait_counts(running=1, blocked=3)
    others = place.send_many(2, "free", f"{key}-free", until=key)
    place.wait_started(*others)
    prefetched = place.send_many(5, "two", f"{key}-two", 0.05)
    wait_until(lambda: len(place.unacked()) >= 5, "they are prefetched")
    for lost in (1, 2):
        _cut_broker(place, name)
        worker.wait_says("Connected to", lost + 1)
        # Not while they are being read again: kombu loses what was popped for a connection that is cut (kombu#305).
        wait_until(lambda: len(place.unacked()) >= 5, "they are prefetched again")
        assert place.inspector.counts().running == 3
    assert place.held(key) == 1
    place.touch(key)
    ids = [holder, *blocked, *others, *prefetched]
    place.wait_ended(*ids)
    place.wait_empty()
    assert [len(place.marks.runs_of(task_id)) for task_id in ids] == [1] * len(ids)
    assert largest_at_once(place.marks.runs(key)) == 1
    assert largest_at_once(place.marks.runs(f"{key}-two")) <= 2
    _all_slots_work(place, worker, key)


def _cut_broker(place: Place, name: str) -> None:
    """Close a worker's connections to its broker; until it listens again."""
    cut = {client["id"] for client in _clients(place, name)}
    assert cut
    # All at one moment, as a lost network does it. While a read goes on that its worker has given up, kombu itself
    # would lose the message that it puts back for it to read (kombu#305).
    with place.broker.pipeline(transaction=True) as pipe:
        for client_id in cut:
            pipe.execute_command("CLIENT", "KILL", "ID", client_id)
        pipe.execute()

    def listens() -> bool:
        return any(client["cmd"] == "brpop" and client["id"] not in cut for client in _clients(place, name))

    wait_until(listens, "it listens again", 15)


def _clients(place: Place, name: str) -> list[dict[str, str]]:
    return [client for client in place.broker.client_list(_type="normal") if client["name"] == name]


def _all_slots_work(place: Place, worker: Worker, key: str) -> None:
    """Three at once, and no fourth."""
    ids = place.send_many(4, "free", f"{key}-slots", until=f"{key}-slots")
    wait_until(lambda: len(place.marks.runs(f"{key}-slots")) == 3, "three run")
    place.touch(f"{key}-slots")
    place.wait_ended(*ids)
    assert largest_at_once(place.marks.runs(f"{key}-slots")) == 3
    assert not worker.has_ended


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_reconnects_under_load_double_and_lose_nothing(place: Place, key: str, pool: str) -> None:
    """F7: cut at any moment of a running drain.

    kombu itself loses the message that the server has popped for a connection when that is cut (kombu#305): such a one
    the worker never saw.
    """
    cuts = 4
    name = f"broker-{place.namespace}"
    conf = {"broker_transport_options": {"client_name": name}}
    worker = place.worker(pool=pool, concurrency=3, prefetch=4, conf=conf)
    ids: list[str] = []
    for _ in range(cuts):
        ids += place.send_many(40, "two", key, 0.02) + place.send_many(40, "free", f"{key}-free", 0.02)
        place.wait_runs(len(ids) - 60)
        _cut_broker(place, name)
    wait_until(lambda: all(place.has_ended(i) or not worker.says(i) for i in ids), "all it has seen have ended", 40)
    place.wait_empty()
    ran = [run.task_id for run in place.marks.runs()]
    assert len(ran) == len(set(ran))
    assert len(ran) >= len(ids) - cuts
    assert largest_at_once(place.marks.runs(key)) <= 2
