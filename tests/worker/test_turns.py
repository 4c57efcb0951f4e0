"""What is blocked takes no slot and holds nobody up; what is not asked for stays at the broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place
from tests.worker.shops import Shops, shops_of
from tests.worker.workers import POOLS

MANY = 2000


@pytest.fixture(scope="module")
def small_shops(open_shared_place: Opener) -> Iterator[Shops]:
    """With two slots, and a prefetch of eight."""
    with shops_of(open_shared_place, concurrency=2, prefetch=4) as shops:
        yield shops


@pytest.mark.parametrize("pool", POOLS)
def test_a_blocked_task_takes_no_slot(small_shops: Shops, key: str, pool: str) -> None:
    """L20: with fifty blocked and one of two slots taken, another key's task runs in the other."""
    place = small_shops(pool)
    small_shops.hold(pool, key)
    blocked = place.send_many(50, "one", key)
    other = place.send("one", f"{key}-other")
    place.wait_ended(other)
    assert len(place.marks.runs(key)) == 1
    place.wait_counts(running=1, blocked=50)
    assert place.unacked() == []
    place.touch(key)
    place.wait_ended(*blocked)
    assert largest_at_once(place.marks.runs(key)) == 1
    place.wait_empty()


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_thousands_refused_and_thousands_handed_on_in_a_row(small_shops: Shops, key: str, pool: str) -> None:
    """S5, F6: no recursion and no hang, in either direction; in order, each once."""
    place = small_shops(pool)
    holder = small_shops.hold(pool, key)
    ids = place.send_many(MANY, "one", key)
    place.wait_counts(running=1, blocked=MANY, timeout=60)
    place.touch(key)
    wait_until(lambda: len(place.marks.runs(key)) == MANY + 1, "all have run", timeout=90)
    place.wait_empty()
    runs = place.marks.runs(key)
    assert [run.task_id for run in runs] == [holder, *ids]
    assert largest_at_once(runs) == 1
    assert not place.crew.all[0].says("RecursionError")


@pytest.mark.parametrize("pool", POOLS)
def test_hundreds_revoked_in_a_row_do_not_recurse(small_shops: Shops, key: str, pool: str) -> None:
    """S5, F16: expired while blocked, so that each ends as it is handed on."""
    place = small_shops(pool)
    holder = small_shops.hold(pool, key)
    place.send_many(500, "one", key, options={"expires": 4})
    sent = time.monotonic()
    place.wait_counts(running=1, blocked=500, timeout=30)
    wait_until(lambda: time.monotonic() > sent + 4, "all have expired")
    last = place.send("one", key)
    place.touch(key)
    place.wait_ended(last, timeout=60)
    assert [run.task_id for run in place.marks.runs(key)] == [holder, last]
    place.wait_empty()
    assert not place.crew.all[0].says("RecursionError")


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_takes_no_more_than_its_slots_and_its_prefetch(small_shops: Shops, key: str, pool: str) -> None:
    """L22: 5,000 tasks without a limit, two slots, a prefetch of eight."""
    place = small_shops(pool)
    place.wait_empty()
    # What runs counts as prefetched, as in plain Celery with acks_late. Solo has one slot, and reads nothing while it
    # runs a task; but a read may be under way.
    slots, prefetched = (2, (6,)) if pool != "solo" else (1, (0, 1))
    holders = place.send_many(slots, "free", key, until=key)
    place.wait_started(*holders)
    place.send_many(5000, "free", key)
    if pool != "solo":
        wait_until(lambda: len(place.unacked()) == 6, "the prefetch is full")
    least, until = 5000, time.monotonic() + 2.5
    while time.monotonic() < until:
        # Over some beats of the worker: each wakes its gate.
        least = min(least, place.broker.llen(place.queue))
    taken = 5000 - least
    assert taken in prefetched
    assert place.inspector.counts().running == slots
    place.broker.delete(place.queue)
    place.touch(key)
    place.wait_ended(*holders)
    place.wait_empty(timeout=20)
    assert len(place.marks.runs(key)) == slots + taken


def test_an_idle_worker_runs_the_next_at_once_while_another_is_busy(place: Place, key: str) -> None:
    """L22a: prefetch 1, one slot each."""
    place.workers(2, concurrency=1, prefetch=1)
    holder = place.send("free", key, until=key)
    place.wait_started(holder)
    for _ in range(20):
        sent = time.monotonic()
        (run,) = place.wait_started(place.send("free", key))
        assert run.started - sent < 1.0
    place.touch(key)
    place.wait_empty()


def test_one_keys_thousand_do_not_hold_up_another_key(place: Place, key: str) -> None:
    """F8: both slots are taken by one key again and again; another key's message has its turn all the same."""
    first = place.worker(concurrency=3)
    holders = place.send_many(2, "two", key, until=key)
    place.wait_started(*holders)
    place.send_many(1000, "two", key, 0.01)
    place.wait_counts(running=2, blocked=1000, timeout=30)
    first.signal(15)
    wait_until(lambda: first.says("Warm shutdown"), "it stops")
    place.touch(key)
    first.wait_ended()
    place.worker(concurrency=2)
    wait_until(lambda: len(place.marks.runs(key)) > 20, "they run")
    before = len(place.marks.runs(key))
    other = place.send("one", f"{key}-other")
    place.wait_started(other)
    assert len(place.marks.runs(key)) - before < 50


@pytest.mark.parametrize("pool", POOLS)
def test_order_is_priority_then_arrival(small_shops: Shops, key: str, pool: str) -> None:
    """F12: on Redis priority 0 goes first."""
    place = small_shops(pool)
    holder = small_shops.hold(pool, key)
    sent: list[tuple[int, str]] = []
    for priority in (9, 3, 0, 3, 9, 0):
        sent.append((priority, place.send("one", key, options={"priority": priority})))
        place.wait_counts(running=1, blocked=len(sent))
    place.touch(key)
    place.wait_ended(*(task_id for _, task_id in sent))
    assert place.marks.order(key) == [holder, *(task_id for _, task_id in sorted(sent, key=lambda pair: pair[0]))]
    place.wait_empty()
