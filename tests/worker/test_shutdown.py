"""Warm shutdown: what runs ends, what has not started is given back, and nothing counts as a stall."""

from __future__ import annotations

import signal
import time

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Place
from tests.worker.shops import one_of_each, queue_of, successor_of_all
from tests.worker.workers import POOLS, WIDE_POOLS

LONG_LEASE = {"backfill_lease_seconds": 30}


@pytest.mark.parametrize("pool", WIDE_POOLS)
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
    second = place.worker(pool="threads", concurrency=2, conf=LONG_LEASE)
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


def test_leases_are_renewed_until_the_last_task_has_ended(place: Place, key: str) -> None:
    """S1: a drain longer than the lease, of each pool; nobody else starts it, and its end is settled."""
    first = one_of_each(place, POOLS, concurrency=1)
    running = {
        pool: place.send("one", f"{key}-{pool}", 6.0, options={"queue": queue_of(place, pool)}) for pool in POOLS
    }
    place.wait_started(*running.values())
    for worker in first.values():
        worker.signal(signal.SIGTERM)
    second = successor_of_all(place, POOLS)
    waiting = {pool: place.send("one", f"{key}-{pool}", options={"queue": queue_of(place, pool)}) for pool in POOLS}
    for worker in first.values():
        worker.wait_ended()
    place.wait_ended(*running.values(), *waiting.values())
    place.wait_empty()
    for pool in POOLS:
        runs = place.marks.runs(f"{key}-{pool}")
        assert [run.task_id for run in runs] == [running[pool], waiting[pool]], pool
        assert largest_at_once(runs) == 1, pool
    assert not second.says("lease_recovered")


@pytest.mark.slow
def test_a_restart_under_load_loses_and_doubles_nothing(place: Place, key: str) -> None:
    """S3: each worker is replaced in turn, while tasks come and go; with leases far longer than the test."""
    workers = [place.worker(pool=pool, concurrency=2, conf=LONG_LEASE) for pool in POOLS[:2]]
    ids: list[str] = []
    for pool in (*POOLS[2:], *POOLS[:2]):
        ids += place.send_many(40, "two", key, 0.05) + place.send_many(40, "free", f"{key}-free", 0.05)
        place.wait_runs(len(ids) - 70)
        workers[-2].signal(signal.SIGTERM)
        workers.append(place.worker(pool=pool, concurrency=2, conf=LONG_LEASE))
    for worker in workers[:-2]:
        worker.wait_ended()
    place.wait_ended(*ids, timeout=30)
    place.wait_empty()
    assert sorted(run.task_id for run in place.marks.runs()) == sorted(ids)
    assert largest_at_once(place.marks.runs(key)) <= 2


def test_a_retry_at_shutdown_is_kept(place: Place, key: str) -> None:
    """A run that asks for a retry while its worker drains, on each pool."""
    first = one_of_each(place, POOLS, concurrency=1, conf=LONG_LEASE)
    ids = {
        pool: place.send("flaky", f"{key}-{pool}", 1, until=key, options={"queue": queue_of(place, pool)})
        for pool in POOLS
    }
    place.wait_started(*ids.values())
    for worker in first.values():
        worker.signal(signal.SIGTERM)
    for worker in first.values():
        wait_until(lambda worker=worker: worker.says("Warm shutdown"), "it stops")
    place.touch(key)
    for worker in first.values():
        worker.wait_ended()
    successor_of_all(place, POOLS, conf=LONG_LEASE)
    for pool, task_id in ids.items():
        place.wait_state(task_id, "SUCCESS")
        assert [run.retries for run in place.marks.runs_of(task_id)] == [0, 1], pool
    place.wait_empty()
