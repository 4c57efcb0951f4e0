"""Leases that are lost while their runs go on: who is told, who is stopped, and what still counts."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until
from tests.worker import told
from tests.worker.marks import Run
from tests.worker.place import Opener, Place
from tests.worker.proxy import TcpProxy
from tests.worker.workers import Worker

POOLS = ("prefork", "threads")
PARTS = {"SHOP_PARTS": "goods told"}
LONG_LEASE = {"backfill_lease_seconds": 60}
assert told.TICK_SECONDS


class Switch(TcpProxy):
    """A way to a server that can be closed for as long as one likes."""

    closed = False

    def shut(self) -> None:
        self.closed = True
        self.cut()

    def _connect(self, client: socket.socket) -> None:
        if self.closed:
            client.close()
        else:
            super()._connect(client)


@pytest.fixture
def switch(redis_server_url: str) -> Iterator[Switch]:
    switch = Switch(redis_server_url, 6379)
    yield switch
    switch.close()


class Two:
    """A worker that runs a task, and another that can take it over."""

    def __init__(self, place: Place, switch: Switch, pool: str) -> None:
        self.place, self.switch, self.pool = place, switch, pool

    def start(self, name: str, key: str, *args: Any, **options: Any) -> str:
        """The first worker alone reaches its store by the switch; then the other one is there as well."""
        conf = {"backfill_redis_url": self.switch.url, "broker_url": self.place.environ["SHOP_REDIS_URL"]}
        self.first = self.place.worker(pool=self.pool, concurrency=1, environ=PARTS, conf=conf)
        task_id = str(self.place.app.send_task(name, (key, *args), **options).id)
        self.place.wait_started(task_id)
        self.second = self.place.worker(pool=self.pool, concurrency=1, environ=PARTS)
        return task_id

    def taken_over(self, task_id: str) -> None:
        """Until the second worker runs it."""
        self.place.wait_runs_of(task_id, 2)
        assert self.place.marks.runs_of(task_id)[1].worker == self.second.name


@pytest.fixture(params=POOLS)
def two(place: Place, switch: Switch, request: pytest.FixtureRequest) -> Two:
    return Two(place, switch, request.param)


def _marks(place: Place, what: str, run: Run | None = None) -> list[dict[str, Any]]:
    lines = [line for line in place.marks.lines() if line["what"] == what]
    return lines if run is None else [line for line in lines if line["pid"] == run.pid and line["token"] == run.token]


def _last_sign(place: Place, run: Run) -> float:
    return max((line["at"] for line in _marks(place, "tick", run)), default=run.started)


def test_a_task_knows_its_lease(place: Place, key: str) -> None:
    """The token, whether it is lost, and for how long it can be counted on: under the lease's three seconds."""
    place.worker(environ=PARTS)
    seen = place.value(place.app.send_task("told.look", (key,)))
    assert seen["token"] > 0
    assert not seen["lost"]
    assert 0 < seen["remaining"] < 3.0


# C22, C14: told


def test_a_run_is_told_that_its_lease_is_lost(two: Two, key: str) -> None:
    """C14, C22, C3: cut off beyond its lease, another worker has its task; at its return it is told."""
    place = two.place
    task_id = two.start("told.loop", key)
    two.switch.shut()
    two.taken_over(task_id)
    assert _marks(place, "told") == []
    two.switch.closed = False
    wait_until(lambda: _marks(place, "told"), "it is told")
    assert [mark["lost"] for mark in _marks(place, "told")] == [True]
    wait_until(lambda: two.first.says("stale_settle"), "its settle is stale")
    assert place.state(task_id) == "PENDING"
    place.touch(key)
    place.wait_state(task_id, "SUCCESS")
    assert place.app.backend.get_result(task_id) == "second"
    assert place.letters(task_id) == []
    place.wait_empty()
    assert [run.retries for run in place.marks.runs_of(task_id)] == [0, 0]


@pytest.mark.parametrize("two", ["prefork"], indirect=True)
def test_a_run_that_sleeps_is_told(two: Two, key: str) -> None:
    """C22: on prefork also in the middle of a sleep."""
    task_id = two.start("told.loop", key, "sleep")
    two.switch.shut()
    two.taken_over(task_id)
    two.switch.closed = False
    wait_until(lambda: _marks(two.place, "told"), "it is told")
    two.place.touch(key)
    two.place.wait_state(task_id, "SUCCESS")
    two.place.wait_empty()


def test_check_says_that_a_lease_cannot_be_counted_on(two: Two, key: str) -> None:
    """``lease.check()``: without the store's word, before anybody else can have the lease."""
    place = two.place
    task_id = two.start("told.loop", key, "check")
    two.switch.shut()
    wait_until(lambda: _marks(place, "told"), "check() raises")
    assert [mark["lost"] for mark in _marks(place, "told")] == [False]
    two.taken_over(task_id)
    assert _marks(place, "told")[0]["at"] < place.marks.runs_of(task_id)[1].started
    assert [run.retries for run in place.marks.runs_of(task_id)] == [0, 0]
    two.switch.closed = False
    place.touch(key)
    place.wait_state(task_id, "SUCCESS")
    place.wait_empty()
    assert place.letters(task_id) == []


@pytest.mark.parametrize("two", ["prefork"], indirect=True)
def test_a_process_is_killed_where_its_task_says_so(two: Two, key: str) -> None:
    """C22: ``on_lease_lost = "kill"``."""
    place = two.place
    task_id = two.start("told.kill", key, "deaf")
    child = place.marks.runs_of(task_id)[0].pid
    two.switch.shut()
    two.taken_over(task_id)
    assert psutil.pid_exists(child)
    two.switch.closed = False
    wait_until(lambda: not psutil.pid_exists(child), "it is killed")
    place.touch(key)
    place.wait_state(task_id, "SUCCESS")
    place.wait_empty()
    assert not two.first.has_ended


def test_what_follows_a_lost_run_does_not_go_out(two: Two, key: str) -> None:
    """F18: told or not, a run that ends without its lease is ignored: one link, and the second run's result."""
    place = two.place
    link = place.app.signature("told.linked", (f"{key}-link",))
    task_id = two.start("told.loop", key, "deaf", link=link)
    two.switch.shut()
    two.taken_over(task_id)
    two.switch.closed = False
    wait_until(lambda: _marks(place, "told"), "it is told, and goes on")
    place.touch(key)
    place.wait_ended(task_id)
    wait_until(lambda: all(run.ended for run in place.marks.runs_of(task_id)), "both runs have ended")
    place.wait_runs(1, f"{key}-link")
    place.wait_empty()
    assert [run.facts["value"] for run in place.marks.runs(f"{key}-link")] == ["second"]
    assert place.app.backend.get_result(task_id) == "second"


# Strict (C14, C23, F24)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loop", "deaf"])
def test_a_strict_run_is_stopped_before_another_starts(two: Two, key: str, how: str) -> None:
    """C14: by its worker and by itself, though it does not listen; on threads the worker goes with one that is deaf."""
    place = two.place
    task_id = two.start("told.strict", key, how)
    two.switch.shut()
    two.taken_over(task_id)
    first, second = place.marks.runs_of(task_id)
    two.switch.closed = False
    place.touch(key)
    place.wait_state(task_id, "SUCCESS")
    assert _last_sign(place, first) < second.started
    assert place.letters(task_id) == []
    if how == "deaf" and two.pool == "threads":
        wait_until(lambda: two.first.has_ended, "the worker has gone with it")
    else:
        assert not two.first.has_ended
    place.wait_empty()


def _stop_parent(worker: Worker, _: int) -> None:
    worker.signal(signal.SIGSTOP)


def _stop_child(_: Worker, child: int) -> None:
    os.kill(child, signal.SIGSTOP)


def _stop_both(worker: Worker, _: int) -> None:
    os.killpg(worker.pid, signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("how", ["loop", "deaf"])
@pytest.mark.parametrize("stop", [_stop_parent, _stop_both])
def test_a_strict_run_does_not_outlive_its_lease_while_its_worker_is_stopped(
    place: Place, key: str, pool: str, how: str, stop: Callable[[Worker, int], None]
) -> None:
    """C3, C23, F24: the parent stopped, or both; after SIGCONT too, the first makes no sign once the second runs."""
    first = place.worker(pool=pool, concurrency=1, environ=PARTS)
    task_id = str(place.app.send_task("told.strict", (key, how)).id)
    place.wait_started(task_id)
    place.worker(pool=pool, concurrency=1, environ=PARTS)
    stop(first, place.marks.runs_of(task_id)[0].pid)
    place.wait_runs_of(task_id, 2)
    os.killpg(first.pid, signal.SIGCONT)
    run, again = place.marks.runs_of(task_id)
    wait_until(lambda: len(_marks(place, "tick", again)) > 20, "the second run goes on for a while")
    assert _last_sign(place, run) < again.started
    place.touch(key)
    place.wait_state(task_id, "SUCCESS")
    place.wait_empty()


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_strict_run_that_is_renewed_goes_on(place: Place, key: str, pool: str) -> None:
    """Longer than two leases."""
    worker = place.worker(pool=pool, concurrency=1, environ=PARTS)
    task_id = str(place.app.send_task("told.strict", (key,)).id)
    place.wait_started(task_id)
    wait_until(lambda: _marks(place, "tick")[-1]["at"] - _marks(place, "tick")[0]["at"] > 7.0, "it ticks for seven s")
    place.touch(key)
    place.wait_state(task_id, "SUCCESS")
    assert len(place.marks.runs_of(task_id)) == 1
    assert not worker.has_ended
    assert _marks(place, "told") == []


# Deaths (C1, C2, C10, C25)


@pytest.mark.parametrize("pool", POOLS)
def test_a_neighbour_sees_that_a_worker_is_gone(place: Place, key: str, pool: str) -> None:
    """C1, F25: on the same host long before its lease, which is a minute here."""
    first = place.worker(pool=pool, concurrency=2, conf=LONG_LEASE)
    lost = place.send("one", key, until=key)
    place.wait_started(lost)
    second = place.worker(pool=pool, concurrency=2, conf=LONG_LEASE)
    first.kill()
    place.wait_runs_of(lost, 2, timeout=8)
    assert second.says("witnessed=True")
    place.touch(key)
    place.wait_ended(lost)
    place.wait_empty()


def test_nobody_is_taken_for_dead_whose_connections_are_cut(place: Place, key: str) -> None:
    """C25."""
    workers = [place.worker(concurrency=1, prefetch=1, conf=LONG_LEASE) for _ in range(2)]
    task_id = place.send("one", key, until=key)
    place.wait_started(task_id)
    for _ in range(3):
        found = [client["id"] for client in place.store.client_list() if client["name"] == "celery_backfill"]
        assert found
        for client_id in found:
            place.store.client_kill_filter(_id=client_id)
        ended = place.send("one", f"{key}-again")
        place.wait_ended(ended)
    place.touch(key)
    place.wait_ended(task_id)
    place.wait_empty()
    assert len(place.marks.runs_of(task_id)) == 1
    assert not any(worker.says("lease_recovered") for worker in workers)


def test_a_stopped_worker_is_not_taken_for_dead(place: Place, key: str) -> None:
    """C25, F25: its lease is a minute, and it is back before that."""
    workers = [place.worker(concurrency=1, prefetch=1, conf=LONG_LEASE) for _ in range(2)]
    task_id = place.send("one", key, until=key)
    [run] = place.wait_started(task_id)
    stopped = next(worker for worker in workers if worker.name == run.worker)
    os.killpg(stopped.pid, signal.SIGSTOP)
    # Several sweeps of its neighbour.
    others = [place.send("one", f"{key}-{number}", 0.5) for number in range(6)]
    place.wait_ended(*others)
    os.killpg(stopped.pid, signal.SIGCONT)
    place.touch(key)
    place.wait_ended(task_id)
    assert len(place.marks.runs_of(task_id)) == 1
    place.wait_empty()


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_stored_before_its_process_died_counts(place: Place, key: str, fails: bool) -> None:
    """F19, D6: one that stored SUCCESS is done, one that stored FAILURE is a dead letter; neither runs again."""
    place.worker(concurrency=1, environ=PARTS)
    task_id = str(place.app.send_task("told.last_words", (key, fails)).id)
    place.wait_ended(task_id)
    place.wait_empty()
    assert len(place.marks.runs_of(task_id)) == 1
    assert place.state(task_id) == ("FAILURE" if fails else "SUCCESS")
    letters = place.letters(task_id)
    assert [letter["exception_message"] for letter in letters] == (["final"] if fails else [])


@pytest.mark.slow
def test_poison_takes_no_neighbours_along(open_place: Opener, key: str) -> None:
    """C10, F22: it kills its worker again and again; those beside it are not blamed, and end."""
    place = open_place(conf={"backfill_max_stalls": 2})
    place.worker(pool="threads", concurrency=3, environ=PARTS)
    innocent = [str(place.app.send_task("told.innocent", (f"{key}-{n}", 2.0)).id) for n in range(2)]
    place.wait_started(*innocent)
    poison = str(place.app.send_task("told.poison", (key,)).id)
    for deaths in range(1, 4):
        wait_until(lambda: place.crew.all[-1].has_ended, f"it takes its worker along for the {deaths}. time", 20)
        place.worker(pool="threads", concurrency=3, environ=PARTS)
    letter = place.wait_letter(poison, timeout=20)
    place.wait_ended(*innocent, timeout=30)
    assert letter["reason"] == "poison"
    assert [place.letters(task_id) for task_id in innocent] == [[], []]
    assert len(place.marks.runs_of(poison)) == 3
    place.wait_empty()


# The interpreter's lock (C8)


@pytest.mark.slow
def test_c_code_that_holds_the_lock_of_a_process_keeps_its_lease(place: Place, key: str) -> None:
    """C8: on prefork the worker's main process renews, whatever its children do."""
    workers = [place.worker(concurrency=1, environ=PARTS) for _ in range(2)]
    started = time.monotonic()
    task_id = str(place.app.send_task("told.hold", (key, 6.0)).id)
    place.wait_state(task_id, "SUCCESS", timeout=30)
    assert time.monotonic() - started > 6.0
    assert len(place.marks.runs_of(task_id)) == 1
    assert not any(worker.says("lease_lost") for worker in workers)
    place.wait_empty()
