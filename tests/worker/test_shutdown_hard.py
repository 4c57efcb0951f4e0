"""Cold, soft and hard shutdown: what was running starts elsewhere when it is over here, and never before.

A pool that can end a running task gives it back at once. On threads and solo nothing can, so that the worker stays
until it has ended, as with plain Celery.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.waiting import wait_until
from tests.worker.marks import Run
from tests.worker.place import Opener, Place
from tests.worker.redis_server import RedisServer, redis_server
from tests.worker.shops import one_of_each, queue_of, successor_of_all
from tests.worker.workers import KILLING_POOLS, POOLS, Worker

LASTING_POOLS = tuple(pool for pool in POOLS if pool not in KILLING_POOLS)
LEASE_SECONDS = 3.0
LONG_LEASE = {"backfill_lease_seconds": 30}

#: A signal, and what a worker says that has heard it.
Step = tuple[int, str]
WARM: Step = (signal.SIGTERM, "Warm shutdown")
COLD: Step = (signal.SIGQUIT, "again will terminate all running tasks")
COLDER: Step = (signal.SIGQUIT, "Waiting gracefully for cold shutdown")
HARD: Step = (signal.SIGQUIT, "")
CTRL_C: Step = (signal.SIGINT, "again will initiate cold shutdown")
CTRL_C_AGAIN: Step = (signal.SIGINT, "again will terminate all running tasks")


@pytest.mark.parametrize(
    "steps", [(COLD,), (WARM, COLD), (CTRL_C, CTRL_C_AGAIN)], ids=["at once", "of a warm one", "Ctrl-C twice"]
)
def test_a_cold_shutdown_gives_back_what_it_ended(place: Place, key: str, steps: Sequence[Step]) -> None:
    """S2: long before its lease would run out; with no stall, and the permit goes with it."""
    first = one_of_each(place, KILLING_POOLS, conf=LONG_LEASE)
    running = _send(place, KILLING_POOLS, key)
    blocked = _send(place, KILLING_POOLS, key, "one")
    place.wait_counts(running=len(running), blocked=len(blocked))
    second = successor_of_all(place, KILLING_POOLS)
    _tell(first, *steps)
    for task_id in running.values():
        place.wait_runs_of(task_id, 2)
    for worker in first.values():
        worker.wait_ended()
    place.touch(f"{key}-go")
    place.wait_ended(*running.values(), *blocked.values())
    place.wait_empty()
    for pool in KILLING_POOLS:
        old, new, next_one = place.marks.runs(f"{key}-{pool}")
        assert [run.task_id for run in (old, new, next_one)] == [running[pool], running[pool], blocked[pool]], pool
        assert (old.worker, new.worker) == (first[pool].name, second.name), pool
        assert _last_sign(place, old) < new.started, pool
        assert new.ended is not None, pool
        assert new.ended < next_one.started, pool
        assert (new.retries, place.state(running[pool])) == (0, "SUCCESS"), pool
        assert not place.letters(running[pool]), pool
    assert not second.says("lease_recovered")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(COLD,), (WARM, COLD)], ids=["at once", "of a warm one"])
def test_a_cold_shutdown_renews_what_it_cannot_end(place: Place, key: str, steps: Sequence[Step]) -> None:
    """S2: for longer than two leases, while another worker looks for leases that have run out."""
    first = one_of_each(place, LASTING_POOLS)
    running = _send(place, LASTING_POOLS, key)
    second = successor_of_all(place, LASTING_POOLS)
    blocked = _send(place, LASTING_POOLS, key, "one")
    told = _tell(first, *steps)
    wait_until(lambda: time.monotonic() > told + 2 * LEASE_SECONDS, "leases would have run out")
    assert [len(place.marks.runs_of(task_id)) for task_id in running.values()] == [1] * len(running)
    place.touch(f"{key}-go")
    place.wait_ended(*running.values(), *blocked.values())
    place.wait_empty()
    for worker in first.values():
        worker.wait_ended()
    for pool in LASTING_POOLS:
        run, next_one = place.marks.runs(f"{key}-{pool}")
        assert (run.task_id, next_one.task_id) == (running[pool], blocked[pool]), pool
        assert _last_sign(place, run) <= next_one.started, pool
        assert place.state(running[pool]) == "SUCCESS", pool
    assert not second.says("lease_recovered")


@pytest.mark.slow
def test_a_soft_shutdown_lets_end_what_ends_in_time(place: Place, key: str) -> None:
    """S2: and gives back the rest, where it can be ended."""
    pools = (*KILLING_POOLS, "threads")
    soft = {**LONG_LEASE, "worker_soft_shutdown_timeout": 2}
    first = one_of_each(place, pools, conf=soft)
    long = _send(place, pools, key)
    short = _send(place, pools, f"{key}-short")
    place.wait_started(*long.values(), *short.values())
    told = _tell(first, COLD)
    place.touch(f"{key}-short-go")
    place.wait_ended(*short.values())
    second = successor_of_all(place, pools)
    for pool in KILLING_POOLS:
        place.wait_runs_of(long[pool], 2)
    place.touch(f"{key}-go")
    place.wait_ended(*long.values())
    for worker in first.values():
        worker.wait_ended()
    place.wait_empty()
    for pool in pools:
        assert len(place.marks.runs_of(short[pool])) == 1, pool
        runs = place.marks.runs_of(long[pool])
        assert len(runs) == (2 if pool in KILLING_POOLS else 1), pool
        assert _last_sign(place, runs[0]) > told + 1.5, pool
        assert runs[-1] is runs[0] or _last_sign(place, runs[0]) < runs[-1].started, pool
        assert {place.state(ids[pool]) for ids in (short, long)} == {"SUCCESS"}, pool
    assert not second.says("lease_recovered")


@pytest.mark.slow
def test_a_hard_shutdown_starts_nothing_too_early(place: Place, key: str) -> None:
    """S2: the third signal ends a worker that still waits. Threads may live on in it, and keep their leases."""
    first = one_of_each(place, POOLS)
    running = _send(place, POOLS, key)
    successor_of_all(place, POOLS)
    told = _tell(first, COLD, COLDER, HARD)
    for pool in POOLS:
        if pool != "threads":
            place.wait_runs_of(running[pool], 2)
    wait_until(lambda: time.monotonic() > told + 2 * LEASE_SECONDS, "leases would have run out")
    place.touch(f"{key}-go")
    place.wait_ended(*running.values())
    for worker in first.values():
        worker.wait_ended()
    place.wait_empty()
    for pool in POOLS:
        runs = place.marks.runs_of(running[pool])
        assert len(runs) == 1 or _last_sign(place, runs[0]) < runs[1].started, pool
        assert (runs[-1].retries, place.state(running[pool])) == (0, "SUCCESS"), pool


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis") / "own") as server:
        yield server


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_cold_shutdown_in_the_midst_of_a_call_to_the_store(
    open_place: Opener, own_redis: RedisServer, key: str, pool: str
) -> None:
    """S2: the signal's handler interrupts it in the very thread that it would wait in."""
    place = open_place(store_url=own_redis.url)
    worker = place.worker(pool=pool, concurrency=2)
    place.wait_ended(place.send("free", key))
    own_redis.freeze()
    waiting = place.send("free", key)
    wait_until(place.unacked, "it is at the gate, which asks the store")
    _tell({pool: worker}, COLD)
    own_redis.thaw()
    worker.wait_ended()
    place.worker(pool=pool, concurrency=2)
    place.wait_ended(waiting)
    place.wait_empty()
    assert len(place.marks.runs_of(waiting)) == 1


def _send(place: Place, pools: Sequence[str], key: str, name: str = "ticking") -> dict[str, str]:
    """Send one to each pool's worker; ``ticking`` ones are running then."""
    until = {"until": f"{key}-go"} if name == "ticking" else {}
    ids = {pool: place.send(name, f"{key}-{pool}", options={"queue": queue_of(place, pool)}, **until) for pool in pools}
    if name == "ticking":
        place.wait_started(*ids.values())
    return ids


def _tell(workers: Mapping[str, Worker], *steps: Step) -> float:
    """Signal all of them, each time until all have heard it; the time before the last signal."""
    told = 0.0
    for number, text in steps:
        told = time.monotonic()
        for worker in workers.values():
            if not worker.has_ended:
                worker.signal(number)
        for worker in workers.values():
            wait_until(lambda w=worker, t=text: w.has_ended or w.says(t), f"{worker.name} says {text!r}")
    return told


def _last_sign(place: Place, run: Run) -> float:
    """When a run was last seen to do something."""
    return max(line["at"] for line in place.marks.lines() if (line["id"], line["pid"]) == (run.task_id, run.pid))
