"""The store frozen, killed, emptied and cut off: running tasks go on, and nothing starts that might be one too many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place
from tests.worker.redis_server import RedisServer, redis_server

POOLS = ("prefork", "threads")
LEASE_SECONDS = 3.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "store") as server:
        yield server


@pytest.fixture
def apart(server: RedisServer, open_place: Opener) -> Place:
    """A place whose store is a server of its own, and whose broker is not."""
    return open_place(store_url=server.url)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_store_recovers_nobody_who_lives(apart: Place, server: RedisServer, key: str, pool: str) -> None:
    """C13, F24: frozen for more than two leases; the running one goes on, nobody else starts, all flows by itself."""
    workers = [apart.worker(pool=pool, concurrency=2) for _ in range(2)]
    holder = apart.send("one", key, until=key)
    apart.wait_started(holder)
    blocked = apart.send_many(3, "one", key)
    apart.wait_counts(running=1, blocked=3)
    server.freeze()
    new = apart.send_many(4, "free", f"{key}-new")
    # The time itself is what is tested here: more than two leases.
    time.sleep(2 * LEASE_SECONDS + 1)
    assert len(apart.marks.runs()) == 1
    server.thaw()
    apart.wait_ended(*new)
    assert len(apart.marks.runs(key)) == 1
    apart.touch(key)
    apart.wait_ended(holder, *blocked)
    apart.wait_empty()
    ids = [holder, *blocked, *new]
    assert [len(apart.marks.runs_of(task_id)) for task_id in ids] == [1] * len(ids)
    assert largest_at_once(apart.marks.runs(key)) == 1
    assert not any(worker.says("lease_recovered") or worker.says("lease_lost") for worker in workers)
    # Said once, not a line a second; the broker's side of the worker never noticed.
    assert all(worker.count("action=store_away") <= 2 for worker in workers)
    assert all(worker.count("Connected to") == 1 for worker in workers)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_killed_store_that_is_back_has_lost_nothing(apart: Place, server: RedisServer, key: str, pool: str) -> None:
    """C11: what runs goes on and ends once; what ended meanwhile is settled; what waited waits on, and then runs."""
    worker = apart.worker(pool=pool, concurrency=3)
    holder, other = apart.send("one", key, until=key), apart.send("free", f"{key}-other", until=f"{key}-other")
    apart.wait_started(holder, other)
    blocked = apart.send_many(3, "one", key)
    due = apart.send("again", f"{key}-due", "thrown", countdown=1)
    apart.wait_counts(running=2, blocked=3, scheduled=1)
    server.kill()
    new = apart.send("free", f"{key}-new")
    apart.touch(f"{key}-other")
    apart.wait_ended(other)
    wait_until(lambda: worker.says("action=store_away"), "it is said")
    server.start()
    apart.wait_ended(new)
    assert len(apart.marks.runs(key)) == 1
    apart.touch(key)
    apart.wait_ended(holder, *blocked)
    apart.wait_runs_of(due, 2)
    apart.wait_empty()
    ids = [holder, other, *blocked, new]
    assert [len(apart.marks.runs_of(task_id)) for task_id in ids] == [1] * len(ids)
    assert [apart.state(task_id) for task_id in ids] == ["SUCCESS"] * len(ids)
    assert largest_at_once(apart.marks.runs(key)) == 1
    assert worker.says("action=store_changed leases_kept=")
    assert worker.says("action=store_back")
    assert not worker.says("lease_lost")


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_an_emptied_store_takes_up_what_runs_before_anything_starts(
    apart: Place, server: RedisServer, key: str, pool: str
) -> None:
    """C12, F26: two workers with leases; both bring them back, new ones wait for their turn, tokens only grow."""
    workers = [apart.worker(pool=pool, concurrency=2, prefetch=1) for _ in range(2)]
    holders = apart.send_many(2, "two", key, until=key)
    apart.wait_started(*holders)
    before = apart.marks.runs(key)
    server.restart(empty=True)
    new = apart.send_many(4, "two", key)
    wait_until(lambda: all(worker.says("action=store_changed") for worker in workers), "both have joined again")
    apart.wait_counts(running=2)
    assert apart.held(key) == 2
    assert {apart.record(run.task_id)["token"] for run in before} == {str(run.token) for run in before}
    apart.wait_counts(running=2, blocked=4)
    assert len(apart.marks.runs(key)) == 2
    apart.touch(key)
    apart.wait_ended(*holders, *new)
    apart.wait_empty()
    runs = apart.marks.runs(key)
    assert [len(apart.marks.runs_of(task_id)) for task_id in (*holders, *new)] == [1] * 6
    assert largest_at_once(runs) == 2
    assert min(run.token for run in runs[2:]) > max(run.token for run in before)
    assert not any(worker.says("lease_lost") for worker in workers)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_starts_while_the_store_is_away(apart: Place, server: RedisServer, key: str, pool: str) -> None:
    """The message stays with the broker, and runs when the store is there."""
    server.kill()
    worker = apart.worker(pool=pool)
    task_id = apart.send("one", key)
    wait_until(lambda: worker.says("action=store_away"), "it is said")
    assert apart.marks.runs(key) == []
    server.start()
    apart.wait_ended(task_id)
    apart.wait_empty()
    assert len(apart.marks.runs_of(task_id)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_strict_run_stops_while_the_store_is_frozen(apart: Place, server: RedisServer, key: str, pool: str) -> None:
    """C13, F24: nobody else can have its lease, but it cannot know; it runs again later, at the cost of a stall."""
    apart.worker(pool=pool, concurrency=1, environ={"SHOP_PARTS": "goods told"})
    task_id = str(apart.app.send_task("told.strict", (key,)).id)
    apart.wait_started(task_id)
    server.freeze()
    try:
        wait_until(lambda: any(line["what"] == "told" for line in apart.marks.lines()), "it is told")
    finally:
        server.thaw()
    apart.wait_runs_of(task_id, 2)
    assert apart.record(task_id)["stalls"] == "1"
    assert [run.retries for run in apart.marks.runs_of(task_id)] == [0, 0]
    apart.touch(key)
    apart.wait_state(task_id, "SUCCESS")
    apart.wait_empty()
