"""Warm shutdown: what runs ends, what has not started is given back, and nothing counts as a stall."""

from __future__ import annotations

import signal
import time

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Place

POOLS = ("prefork", "threads")
LONG_LEASE = {"backfill_lease_seconds": 30}


@pytest.mark.parametrize("pool", POOLS)
def test_what_has_not_started_runs_elsewhere_at_once(place: Place, key: str, pool: str) -> None:
    """S1: two run, five are prefetched, three are blocked; another worker has the rest before the two have ended."""
    first = place.worker(pool=pool, concurrency=2, prefetch=4, conf=LONG_LEASE)
    running = [place.send("one", key, until=f"{key}-go")]
    place.wait_started(*running)
    blocked = [place.send("one", key) for _ in range(3)]
    place.wait_counts(running=1, blocked=3)
    running.append(place.send("free", f"{key}-other", until=f"{key}-go"))
    place.wait_started(*running)
    prefetched = [place.send("free", f"{key}-free") for _ in range(5)]
    wait_until(lambda: len(place.unacked()) == 5, "they are prefetched")
    second = place.worker(pool=pool, concurrency=2, conf=LONG_LEASE)
    stopped = time.monotonic()
    first.signal(signal.SIGTERM)
    place.wait_ended(*prefetched)
    assert not first.has_ended
    assert max(run.started for run in place.marks.runs(f"{key}-free")) - stopped < 5.0
    place.wait_counts(running=2, blocked=3)
    place.touch(f"{key}-go")
    place.wait_ended(*running, *blocked)
    first.wait_ended()
    place.wait_empty()
    ids = [*running, *prefetched, *blocked]
    assert [len(place.marks.runs_of(task_id)) for task_id in ids] == [1] * len(ids)
    assert {run.worker for run in place.marks.runs(f"{key}-free")} == {second.name}
    assert largest_at_once(place.marks.runs(key)) == 1
    assert not second.says("lease_recovered")
    assert [place.state(task_id) for task_id in ids] == ["SUCCESS"] * len(ids)


@pytest.mark.parametrize("pool", POOLS)
def test_leases_are_renewed_until_the_last_task_has_ended(place: Place, key: str, pool: str) -> None:
    """S1: a drain longer than the lease; nobody else starts it, and its end is settled."""
    first = place.worker(pool=pool, concurrency=1)
    task_id = place.send("one", key, 5.0)
    place.wait_started(task_id)
    second = place.worker(pool=pool, concurrency=1)
    first.signal(signal.SIGTERM)
    waiting = place.send("one", key)
    first.wait_ended()
    place.wait_ended(task_id, waiting)
    place.wait_empty()
    assert len(place.marks.runs_of(task_id)) == 1
    assert place.marks.order(key) == [task_id, waiting]
    assert not second.says("lease_recovered")


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_restart_under_load_loses_and_doubles_nothing(place: Place, key: str, pool: str) -> None:
    """S3: each worker is replaced in turn, while tasks come and go; with leases far longer than the test."""
    workers = [place.worker(pool=pool, concurrency=2, conf=LONG_LEASE) for _ in range(2)]
    ids: list[str] = []
    for _ in range(3):
        ids += place.send_many(40, "two", key, 0.05) + place.send_many(40, "free", f"{key}-free", 0.05)
        place.wait_runs(len(ids) - 70)
        old = workers.pop(0)
        old.signal(signal.SIGTERM)
        workers.append(place.worker(pool=pool, concurrency=2, conf=LONG_LEASE))
        old.wait_ended()
    place.wait_ended(*ids, timeout=30)
    place.wait_empty()
    assert sorted(run.task_id for run in place.marks.runs()) == sorted(ids)
    assert largest_at_once(place.marks.runs(key)) <= 2


@pytest.mark.parametrize("pool", POOLS)
def test_a_retry_at_shutdown_is_kept(place: Place, key: str, pool: str) -> None:
    """A run that asks for a retry while its worker drains."""
    first = place.worker(pool=pool, concurrency=1, conf=LONG_LEASE)
    task_id = place.send("flaky", key, 1, until=key)
    place.wait_started(task_id)
    first.signal(signal.SIGTERM)
    wait_until(lambda: first.says("Warm shutdown"), "it stops")
    place.touch(key)
    first.wait_ended()
    place.worker(pool=pool, concurrency=1, conf=LONG_LEASE)
    place.wait_state(task_id, "SUCCESS")
    assert [run.retries for run in place.marks.runs_of(task_id)] == [0, 1]
    place.wait_empty()
