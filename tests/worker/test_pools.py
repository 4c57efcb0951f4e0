"""What every pool must do, one worker of each at the same time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place
from tests.worker.shops import one_of_each, queue_of
from tests.worker.workers import POOLS, WIDE_POOLS, Worker

LEASE_SECONDS = 3.0
#: For a loaded machine: without recovery the tasks would wait for ever.
MARGIN_SECONDS = 6.0


@pytest.fixture(scope="module")
def place(open_shared_place: Opener) -> Place:
    """With one worker of each pool, of three slots."""
    place = open_shared_place()
    one_of_each(place, POOLS, concurrency=3)
    return place


def _send_each(place: Place, name: str, key: str, number: int = 1, **arguments: object) -> dict[str, list[str]]:
    options = arguments.pop("options", {})
    return {
        pool: place.send_many(
            number, name, f"{key}-{pool}", options={"queue": queue_of(place, pool), **options}, **arguments
        )
        for pool in POOLS
    }


def _all(*sent: dict[str, list[str]]) -> list[str]:
    return [task_id for by_pool in sent for ids in by_pool.values() for task_id in ids]


def test_a_task_runs_under_its_lease_and_has_its_result(place: Place, key: str) -> None:
    ids = _send_each(place, "one", key, value="done")
    for pool, (task_id,) in ids.items():
        assert place.value(place.app.AsyncResult(task_id)) == "done", pool
        (run,) = place.marks.runs_of(task_id)
        assert run.token > 0, pool
    place.wait_empty()


def test_slots_are_used_and_not_exceeded(place: Place, key: str) -> None:
    """Three at once, and the others when there is room; one at once on solo."""
    ids = _send_each(place, "free", key, 9, seconds=0.2)
    place.wait_ended(*_all(ids))
    for pool in POOLS:
        runs = place.marks.runs(f"{key}-{pool}")
        assert (len(runs), largest_at_once(runs)) == (9, 3 if pool in WIDE_POOLS else 1), pool
    place.wait_empty()


@pytest.mark.slow
def test_a_task_longer_than_its_lease_runs_once(place: Place, key: str) -> None:
    """L2, C8: solo does nothing else meanwhile, but for renewing."""
    ids = _send_each(place, "one", key, seconds=2 * LEASE_SECONDS)
    behind = _send_each(place, "one", key)
    place.wait_ended(*_all(ids, behind))
    place.wait_empty()
    for pool in POOLS:
        assert place.marks.order(f"{key}-{pool}") == [*ids[pool], *behind[pool]], pool
        assert largest_at_once(place.marks.runs(f"{key}-{pool}")) == 1, pool
    assert not any(worker.says("lease_recovered") or worker.says("lease_lost") for worker in place.crew.all)


def test_rate_limited_tasks_all_run(place: Place, key: str) -> None:
    """Ten a second: Celery's own bucket comes before the gate."""
    ids = _send_each(place, "rated", key, 6)
    place.wait_ended(*_all(ids))
    for pool in POOLS:
        runs = place.marks.runs(f"{key}-{pool}")
        assert len(runs) == 6, pool
        assert runs[-1].started - runs[0].started > 0.4, pool
    place.wait_empty()


def test_tasks_with_an_eta_run_at_their_time(place: Place, key: str) -> None:
    """L18: and the key is free for others until then. Some are late already."""
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    at = time.monotonic() + 1.5
    later = _send_each(place, "one", key, 3, options={"eta": due})
    late = _send_each(place, "one", key, options={"eta": due - timedelta(seconds=60)})
    now = _send_each(place, "one", key)
    place.wait_ended(*_all(later, late, now))
    for pool in POOLS:
        runs = place.marks.runs(f"{key}-{pool}")
        assert {run.task_id for run in runs[:2]} == {*late[pool], *now[pool]}, pool
        assert {run.task_id for run in runs[2:]} == set(later[pool]), pool
        assert runs[2].started >= at - 0.1, pool
        assert largest_at_once(runs) == 1, pool
    place.wait_empty()


@pytest.mark.slow
def test_a_killed_workers_task_runs_again_on_another_pool(open_place: Opener, key: str) -> None:
    """C1: within a lease and a second. Each pool's worker is killed, and each recovers what another one held."""
    place = open_place()
    killed = one_of_each(place, POOLS)
    ids = {pool: found[0] for pool, found in _send_each(place, "one", key, until=f"{key}-go").items()}
    place.wait_started(*ids.values())
    heirs = {pool: _heir(place, number) for number, pool in enumerate(POOLS)}
    for worker in heirs.values():
        worker.wait_ready()
    for worker in killed.values():
        worker.kill()
    at = time.monotonic()
    wait_until(lambda: all(len(place.marks.runs_of(task_id)) == 2 for task_id in ids.values()), "all run again", 20)
    place.touch(f"{key}-go")
    for pool, task_id in ids.items():
        first, second = place.marks.runs_of(task_id)
        assert (first.ended, second.retries, second.worker) == (None, 0, heirs[pool].name), pool
        assert second.started - at < LEASE_SECONDS + 1.0 + MARGIN_SECONDS, pool
        place.wait_state(task_id, "SUCCESS")
    place.wait_empty()


def _heir(place: Place, number: int) -> Worker:
    """A worker of the next pool on the queue of this one."""
    pool = POOLS[(number + 1) % len(POOLS)]
    return place.worker(pool=pool, queues=(queue_of(place, POOLS[number]),), ready=False)
