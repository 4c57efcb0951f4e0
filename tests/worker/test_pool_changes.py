"""The pool changes while tasks run and wait: none is lost, doubled or left waiting."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Place
from tests.worker.workers import Worker


def test_children_that_are_replaced_after_two_tasks(place: Place, key: str) -> None:
    """worker_max_tasks_per_child: no child runs a third, and what one was given too late runs in another."""
    worker = place.worker(concurrency=3, conf={"worker_max_tasks_per_child": 2})
    ids: list[str] = []
    for _ in range(6):
        sent = time.monotonic()
        now = place.send_many(3, "free", f"{key}-free") + place.send_many(4, "two", key)
        place.wait_ended(*now)
        # Celery alone takes up to five seconds to see that a child has ended.
        assert time.monotonic() - sent < 3.0
        ids += now
    retried = [place.send("flaky", f"{key}-{number}", 1) for number in range(5)]
    for task_id in retried:
        place.wait_runs_of(task_id, 2)
    place.wait_empty()
    runs = place.marks.runs()
    assert len(runs) == len(ids) + 2 * len(retried)
    assert largest_at_once(place.marks.runs(key)) <= 2
    assert max(sum(run.pid == pid for run in runs) for pid in {run.pid for run in runs}) <= 2
    assert not worker.says("lease_recovered")


def test_autoscaling_grows_for_what_the_store_has_and_shrinks_again(place: Place, key: str) -> None:
    """F9: all that waits is in the store, and can run at once when the first worker goes."""
    first = place.worker(concurrency=5)
    holders = [place.send("one", f"{key}-{number}", until=f"{key}-first") for number in range(4)]
    place.wait_started(*holders)
    waiting = [place.send("one", f"{key}-{number}", until=f"{key}-second") for number in range(4)]
    place.wait_counts(running=4, blocked=4)
    first.signal(signal.SIGTERM)
    wait_until(lambda: first.says("Warm shutdown"), "it stops")
    second = place.worker(options=["--autoscale=4,1"], environ={"AUTOSCALE_KEEPALIVE": "1"})
    assert len(_children(second)) == 1
    place.touch(f"{key}-first")
    first.wait_ended()
    place.wait_started(*waiting)
    assert largest_at_once(place.marks.runs()) == 4
    assert len(_children(second)) == 4
    place.touch(f"{key}-second")
    wait_until(lambda: len(_children(second)) == 1, "it shrinks", 20)
    again = place.send_many(8, "free", key, until=f"{key}-third")
    place.wait_runs(4, key)
    place.wait_counts(running=4)
    place.touch(f"{key}-third")
    place.wait_ended(*again)
    place.wait_empty()
    assert largest_at_once(place.marks.runs(key)) == 4


def _children(worker: Worker) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


def test_children_that_are_replaced_by_remote_control(place: Place, key: str) -> None:
    """pool_restart, with some running, some blocked and some prefetched."""
    worker = place.worker(concurrency=3, conf={"worker_pool_restarts": True})
    running = [place.send("one", key, until=key), place.send("free", key, until=key)]
    place.wait_started(*running)
    blocked = place.send_many(5, "one", key)
    prefetched = place.send_many(3, "free", key)
    place.wait_counts(running=2, blocked=5)
    before = {child.pid for child in _children(worker)}
    reply = place.app.control.broadcast("pool_restart", reply=True, timeout=5, limit=1)
    assert "ok" in reply[0][worker.name], reply
    place.touch(key)
    place.wait_ended(*running, *blocked, *prefetched)
    after = place.send_many(10, "free", key)
    place.wait_ended(*after)
    place.wait_empty()
    assert len(place.marks.runs()) == 2 + 5 + 3 + 10
    assert not before & {run.pid for run in place.marks.runs() if run.task_id in after}


@pytest.mark.parametrize("pool", ["prefork", "gevent", "eventlet"])
def test_a_pool_that_is_made_larger_and_smaller_by_remote_control(place: Place, key: str, pool: str) -> None:
    """pool_grow, pool_shrink: the gate's slots follow."""
    worker = place.worker(pool=pool, concurrency=1)
    ids = place.send_many(4, "free", key, until=f"{key}-first")
    place.wait_runs(1, key)
    place.app.control.broadcast("pool_grow", {"n": 2}, reply=True, timeout=5, limit=1)
    place.wait_runs(3, key)
    place.wait_counts(running=3)
    place.touch(f"{key}-first")
    place.wait_ended(*ids)
    place.app.control.broadcast("pool_shrink", {"n": 2}, reply=True, timeout=5, limit=1)
    ids = place.send_many(4, "free", f"{key}-2", until=f"{key}-second")
    place.wait_runs(1, f"{key}-2")
    place.wait_counts(running=1)
    place.touch(f"{key}-second")
    place.wait_ended(*ids)
    place.wait_empty()
    assert largest_at_once(place.marks.runs(f"{key}-2")) == 1
    assert not worker.has_ended
