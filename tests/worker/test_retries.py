"""Retries, automatic and by hand: an outcome of a run, with everything that Celery's own would keep."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from celery_backfill.leases.store import Call, Ending, LeaseStore
from celery_backfill.leases.wire import Wire
from tests.waiting import wait_until
from tests.worker.place import Opener, Place
from tests.worker.shops import Shops, shops_of
from tests.worker.workers import POOLS, WIDE_POOLS


@pytest.fixture(scope="module")
def shops(open_shared_place: Opener) -> Iterator[Shops]:
    """With two slots."""
    with shops_of(open_shared_place, concurrency=2) as shops:
        yield shops


@pytest.fixture(params=POOLS)
def shop(shops: Shops, request: pytest.FixtureRequest) -> Place:
    return shops(request.param)


def test_an_automatic_retry_runs_again_and_succeeds(shop: Place, key: str) -> None:
    """F20: one attempt, ``retries`` counted, nothing published."""
    task_id = shop.send("flaky", key, 2)
    shop.wait_state(task_id, "SUCCESS")
    shop.wait_empty()
    assert [run.retries for run in shop.marks.runs_of(task_id)] == [0, 1, 2]
    assert shop.letters(task_id) == []
    assert len({run.token for run in shop.marks.runs_of(task_id)}) == 3


def test_retries_that_are_used_up_are_one_letter(shop: Place, key: str) -> None:
    """K8: the reason is that of the last attempt."""
    task_id = shop.send("flaky", key)
    letter = shop.wait_letter(task_id)
    assert (letter["reason"], letter["retries"], letter["exception_type"]) == ("exhausted", 2, "OSError")
    assert [run.retries for run in shop.marks.runs_of(task_id)] == [0, 1, 2]
    assert shop.state(task_id) == "FAILURE"


@pytest.mark.parametrize("error", ["Declined", "CardExpired", "NonRetryableError"])
def test_what_is_declared_non_retryable_runs_once(shop: Place, key: str, error: str) -> None:
    """K1: and so does a subclass of it; autoretry_for covers every exception here."""
    task_id = shop.send("flaky", key, error=error)
    assert shop.wait_letter(task_id)["reason"] == "non_retryable"
    shop.wait_empty()
    assert len(shop.marks.runs_of(task_id)) == 1
    assert shop.state(task_id) == "FAILURE"


def test_a_retry_by_hand_for_a_permanent_error_runs_once(shop: Place, key: str) -> None:
    """K3."""
    task_id = shop.send("again", key, "permanent")
    assert shop.wait_letter(task_id)["reason"] == "non_retryable"
    assert len(shop.marks.runs_of(task_id)) == 1


def test_a_retry_by_hand_may_have_new_arguments(shop: Place, key: str) -> None:
    """F20."""
    task_id = shop.send("again", key, "new_args", number=1)
    shop.wait_state(task_id, "SUCCESS")
    assert [run.facts["number"] for run in shop.marks.runs_of(task_id)] == [1, 2]
    assert shop.value(shop.app.AsyncResult(task_id)) == 2


@pytest.mark.parametrize("how", ["thrown", "not_thrown", "swallowed"])
def test_a_retry_reaches_the_worker_however_it_was_asked_for(shop: Place, key: str, how: str) -> None:
    """F20: Retry drops its signature on the way out of the child, and may be swallowed there."""
    task_id = shop.send("again", key, how)
    wait_until(lambda: len(shop.marks.runs_of(task_id)) == 2, "it runs again")
    shop.wait_empty()
    assert [run.retries for run in shop.marks.runs_of(task_id)] == [0, 1]
    assert shop.letters(task_id) == []


def test_a_retry_waits_for_its_countdown_without_a_slot_or_a_permit(shop: Place, key: str) -> None:
    """L18: the key is free for others meanwhile."""
    task_id = shop.send("again", key, "thrown", countdown=2)
    shop.wait_counts(scheduled=1, running=0)
    other = shop.send("one", key)
    shop.wait_ended(other)
    assert len(shop.marks.runs_of(task_id)) == 1
    wait_until(lambda: len(shop.marks.runs_of(task_id)) == 2, "it runs again")
    first, second = shop.marks.runs_of(task_id)
    assert first.ended is not None
    assert 2.0 <= second.started - first.ended < 3.0
    shop.wait_empty()


@pytest.mark.parametrize("shop", WIDE_POOLS, indirect=True)
def test_a_retry_joins_the_end_of_its_line(shop: Place, key: str) -> None:
    """F12: it takes a new arrival."""
    retried = shop.send("flaky", key, 1, until=key)
    shop.wait_started(retried)
    others = [shop.send("one", key) for _ in range(3)]
    shop.wait_counts(running=1, blocked=3)
    shop.touch(key)
    shop.wait_ended(*others)
    shop.wait_empty()
    assert shop.marks.order(key) == [retried, *others, retried]


def test_chain_link_headers_and_stamps_survive_a_retry(shop: Place, key: str) -> None:
    """F20."""
    one, flaky, add = (shop.app.tasks[f"shop.{name}"] for name in ("one", "flaky", "add"))
    retried = flaky.si(key, 2).set(headers={"tenant": "seven"}, link=one.si(f"{key}-link"))
    whole = retried | one.si(key, value=5) | add.s(key)
    result = whole.apply_async(stamped_headers=["release"], release="r1")
    assert shop.value(result) == 6
    runs = shop.marks.runs_of(result.parent.parent.id)
    assert [run.facts["headers"].get("tenant") for run in runs] == ["seven"] * 3
    assert [run.facts["stamps"].get("release") for run in runs] == ["r1"] * 3
    wait_until(lambda: len(shop.marks.runs(f"{key}-link")) == 1, "the callback has run")
    shop.wait_empty()
    assert len(shop.marks.runs(f"{key}-link")) == 1


def test_waiting_and_coming_back_burns_no_retry(place: Place, key: str) -> None:
    """L6: given back a thousand times, then a task with max_retries=2 still runs three times."""
    first = place.worker(concurrency=2)
    holder = place.send("one", key, until=key)
    place.wait_started(holder)
    task_id = place.send("flaky", key)
    place.wait_counts(running=1, blocked=1)
    first.signal(15)
    wait_until(lambda: first.says("Warm shutdown"), "it stops")
    place.touch(key)
    first.wait_ended()
    place.wait_counts(running=0, blocked=1)
    _claim_and_give_back(place, 1000)
    assert place.record(task_id)["stalls"] == "0"
    place.worker(concurrency=2)
    letter = place.wait_letter(task_id)
    assert (letter["reason"], letter["retries"]) == ("exhausted", 2)
    assert [run.retries for run in place.marks.runs_of(task_id)] == [0, 1, 2]


def _claim_and_give_back(place: Place, times: int) -> None:
    """As a worker does that is told to stop before what it was handed has started."""
    wire = Wire(place.environ["SHOP_REDIS_URL"])
    store = LeaseStore(wire, place.namespace)
    store.join("tester", ["shop.flaky"])
    for number in range(times):
        (grant,) = store.claim(Call("tester", 2 * number + 1), 1, [place.queue]).grants
        store.settle(Call("tester", 2 * number + 2), grant.attempt, grant.token, Ending(outcome="back"))
    wire.close()


def test_a_retry_survives_its_worker(place: Place, key: str) -> None:
    """The store keeps it, not the worker's memory."""
    first = place.worker(concurrency=1)
    task_id = place.send("again", key, "thrown", countdown=3)
    place.wait_counts(scheduled=1)
    asked = time.monotonic()
    first.kill()
    place.worker(concurrency=1)
    wait_until(lambda: len(place.marks.runs_of(task_id)) == 2, "it runs again")
    assert place.marks.runs_of(task_id)[1].started - asked > 2.0
    place.wait_empty()
