"""Workers killed, stopped and replaced: what they held runs again, once, and in its place."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.waiting import wait_until
from tests.worker.marks import Run, largest_at_once
from tests.worker.place import Place

LEASE_SECONDS = 3.0
#: For a loaded machine: without recovery the tasks would wait for ever.
MARGIN_SECONDS = 6.0
KILLS = 3


def test_a_killed_workers_tasks_run_elsewhere_soon(place: Place, key: str) -> None:
    """C1, F12: within a lease and a second; with their permits, a stall each, and before what waited behind them."""
    first = place.worker(concurrency=3)
    lost = place.send_many(2, "two", key, until=f"{key}-first")
    place.wait_started(*lost)
    waiting = [place.send("two", key) for _ in range(3)]
    place.wait_counts(running=2, blocked=3)
    place.worker(concurrency=3)
    first.kill()
    killed = time.monotonic()
    place.wait_runs(4, key)
    again = place.marks.runs(key)[2:]
    assert {run.task_id for run in again} == set(lost)
    assert all(run.started - killed < LEASE_SECONDS + 1.0 + MARGIN_SECONDS for run in again)
    assert [place.record(task_id)["stalls"] for task_id in lost] == ["1", "1"]
    assert [run.retries for run in again] == [0, 0]
    assert place.held(key) == 2
    place.touch(f"{key}-first")
    place.wait_ended(*lost, *waiting)
    # By token: of two that run at once, either may be the first to write its mark.
    assert [run.task_id for run in sorted(place.marks.runs(key), key=lambda run: run.token)][4:] == waiting
    assert largest_at_once(place.marks.runs(key), cut_off_at=killed) == 2
    assert all(place.letters(task_id) == [] for task_id in lost)
    place.wait_empty()


def test_recovered_tasks_keep_priority_and_arrival(place: Place, key: str) -> None:
    """F12."""
    first = place.worker(concurrency=2)
    holder = place.send("one", key, until=f"{key}-first", options={"priority": 3})
    place.wait_started(holder)
    sent: list[tuple[int, str]] = [(3, holder)]
    for priority in (9, 3, 3, 0):
        sent.append((priority, place.send("one", key, options={"priority": priority})))
        place.wait_counts(running=1, blocked=len(sent) - 1)
    first.kill()
    place.touch(f"{key}-first")
    place.worker(concurrency=2)
    place.wait_ended(*(task_id for _, task_id in sent))
    expected = [task_id for _, task_id in sorted(sent, key=lambda pair: pair[0])]
    assert place.marks.order(key)[1:] == expected
    place.wait_empty()


@pytest.mark.parametrize("how", ["return", "raise", "retry"])
def test_a_worker_that_gets_its_own_stalled_attempt_back(place: Place, key: str, how: str) -> None:
    """C4, C3: the older run cannot settle, fail or retry it; the newer one counts, and holds the permit alone."""
    place.worker(queues=(f"{place.namespace}-elsewhere",), concurrency=1)
    worker = place.worker(concurrency=3)
    task_id = place.send("second_run", key, how)
    place.wait_started(task_id)
    worker.signal(signal.SIGSTOP)
    # The other worker's sweep takes the lease back, and has no such queue itself.
    wait_until(lambda: place.record(task_id).get("stalls") == "1", "it is recovered")
    worker.signal(signal.SIGCONT)
    place.wait_runs_of(task_id, 2)
    successor = place.send("one", key)
    place.wait_counts(running=1, blocked=1)
    token = place.record(task_id)["token"]
    place.touch(f"{task_id}.end1")
    wait_until(lambda: worker.says("stale_settle"), "the older run's settle is stale")
    assert place.record(task_id)["token"] == token
    assert place.held(key) == 1
    assert len(place.marks.runs_of(successor)) == 0
    place.touch(f"{task_id}.end2")
    place.wait_ended(successor)
    place.wait_empty()
    assert len(place.marks.runs_of(task_id)) == 2
    assert place.letters(task_id) == []
    if how != "return":
        # A result that the older run stored first stays: its process does not know yet that its lease is lost (F18).
        wait_until(lambda: place.app.backend.get_result(task_id) == "run 2", "the newer run's result counts")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_kill_at_any_point_ends_a_task_and_wakes_the_next_or_neither(place: Place, key: str, pool: str) -> None:
    """L5: after each kill nobody waits behind a permit that is free, and in the end each has run to its end."""
    three = f"{key}-three"
    place.crew.start(queues=(place.queue,), pool=pool, concurrency=6)
    holders = [place.send("one", key, until="go"), *place.send_many(3, "three", three, until="go")]
    place.wait_started(*holders)
    ids = [*holders, *place.send_many(150, "one", key, 0.01), *place.send_many(150, "three", three, 0.01)]
    # All are in the store before the first kill: kombu itself may lose a message that a killed worker was just reading.
    place.wait_counts(running=4, blocked=300)
    place.touch("go")
    kills: list[float] = []
    for _ in range(KILLS):
        place.wait_runs(len(place.marks.runs()) + 10)
        time.sleep(random.uniform(0, 0.1))
        place.crew.all[-1].kill()
        kills.append(time.monotonic())
        _nobody_waits_for_a_free_permit(place, {key: 1, three: 3})
        place.worker(pool=pool, concurrency=6)
    place.wait_ended(*ids, timeout=60)
    place.wait_empty()
    # Each kill can cut off four runs, or come between a run's last mark and its settlement.
    runs = place.marks.runs()
    assert len(ids) <= len(runs) <= len(ids) + 4 * KILLS
    assert _largest_with_kills(place.marks.runs(key), kills) == 1
    assert _largest_with_kills(place.marks.runs(three), kills) == 3


def _nobody_waits_for_a_free_permit(place: Place, limits: dict[str, int]) -> None:
    prefix = f"{{{place.namespace}}}:"
    for key, capacity in limits.items():
        held = place.store.smembers(f"{prefix}h:{key}")
        assert len(held) <= capacity
        for attempt in held:
            assert place.store.zscore(f"{prefix}leases", attempt) is not None
        waiting = place.store.exists(f"{prefix}l:{len(place.queue)}:{place.queue}:{key}")
        may_run = place.store.zscore(f"{prefix}t:{place.queue}", key) is not None
        assert may_run == bool(waiting and len(held) < capacity)


def _largest_with_kills(runs: Iterable[Run], kills: list[float]) -> int:
    """The largest number at once; a run that a kill cut off lasted until then."""
    ended = [
        run if run.ended else replace(run, ended=min((kill for kill in kills if kill > run.started), default=None))
        for run in runs
    ]
    return largest_at_once(ended)
