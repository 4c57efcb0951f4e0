"""F13: what each end of a run leaves in the store, in the outbox and in the result backend, on each pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.worker.place import Opener, Place
from tests.worker.shops import Shops, shops_of
from tests.worker.workers import KILLING_POOLS, POOLS


@dataclass(frozen=True)
class End:
    """One line of the table. ``runs``, ``state`` and ``reason`` are what must be seen afterwards."""

    name: str
    runs: int
    state: str
    reason: str | None = None
    exception: str | None = None
    task: str = "ending"
    how: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    pools: tuple[str, ...] = POOLS


TABLE = [
    End("success", 1, "SUCCESS", how="succeed"),
    End("ignore", 1, "PENDING", how="ignore"),
    End("raise", 1, "FAILURE", "failed", "ValueError", how="raise"),
    End("unpicklable exception", 1, "FAILURE", "failed", "tests.worker.shop.Unpicklable", how="raise_unpicklable"),
    End(
        "unpicklable and non-retryable",
        1,
        "FAILURE",
        "non_retryable",
        "tests.worker.shop.UnpicklableForGood",
        how="raise_unpicklable_for_good",
    ),
    End("retries exhausted", 3, "FAILURE", "exhausted", "OSError", task="flaky"),
    End(
        "non-retryable by declaration",
        1,
        "FAILURE",
        "non_retryable",
        "tests.worker.shop.CardExpired",
        task="flaky",
        kwargs={"error": "CardExpired"},
    ),
    End(
        "non-retryable by its class",
        1,
        "FAILURE",
        "non_retryable",
        "celery_backfill.errors.NonRetryableError",
        how="raise_non_retryable",
    ),
    End("reject", 1, "FAILURE", "rejected", "celery.exceptions.Reject", how="reject"),
    End("reject with requeue", 2, "SUCCESS", how="reject_once"),
    End("sys.exit", 1, "FAILURE", "failed", "celery_backfill.errors.TaskExitedError", how="exit"),
    End("interrupted", 1, "FAILURE", "failed", "celery_backfill.errors.TaskExitedError", how="interrupt"),
    End("MemoryError", 1, "FAILURE", "failed", "celery_backfill.errors.TaskOutOfMemoryError", how="run_out_of_memory"),
    End("Retry by hand", 1, "RETRY", how="raise_retry"),
    End("key without argument", 0, "FAILURE", "invalid", "celery_backfill.errors.InvalidKeyError", task="keyless"),
    End(
        "hard time limit",
        1,
        "FAILURE",
        "time_limit",
        "billiard.exceptions.TimeLimitExceeded",
        how="sleep",
        options={"time_limit": 1},
        pools=("prefork", "gevent"),
    ),
    End("child killed once", 2, "SUCCESS", how="die_once", pools=("prefork",)),
    End(
        "child killed over its budget",
        2,
        "FAILURE",
        "poison",
        "billiard.exceptions.WorkerLostError",
        how="die",
        pools=("prefork",),
    ),
]

CASES = [pytest.param(pool, end, id=f"{pool}-{end.name}") for pool in POOLS for end in TABLE if pool in end.pools]


@pytest.fixture(scope="module")
def shops(open_shared_place: Opener) -> Iterator[Shops]:
    """With slots to spare, since Celery is slow to replace a killed child."""
    with shops_of(open_shared_place, concurrency=4) as shops:
        yield shops


@pytest.mark.parametrize(("pool", "end"), CASES)
def test_an_end_settles_once_and_frees_its_key(shops: Shops, key: str, pool: str, end: End) -> None:
    """F13: no lease and no permit is left, the next on the key runs, and a final failure is one letter."""
    place = shops(pool)
    task_id = _send(place, end, key)
    successor = place.send("one", key)
    place.wait_ended(successor, timeout=20)
    check(place, task_id, end)


def _send(place: Place, end: End, key: str) -> str:
    args = (key,) if end.how is None else (key, end.how)
    return place.send(end.task, *args, options=end.options, **end.kwargs)


def check(place: Place, task_id: str, end: End) -> None:
    """What an end must have left."""
    place.wait_state(task_id, end.state)
    wait_until(lambda: not place.record(task_id), "the attempt is settled")
    place.wait_empty()
    assert len(place.marks.runs_of(task_id)) == end.runs
    if end.reason is None:
        assert not (found := place.letters(task_id)), repr(found)
    else:
        letter = place.wait_letter(task_id)
        assert (letter["reason"], letter["exception_type"]) == (end.reason, end.exception)
    assert not place.crew.all[0].has_ended


REVOKED = End("revoked before its start", 0, "REVOKED")


@pytest.mark.parametrize("pool", POOLS)
def test_a_blocked_task_that_is_revoked_never_runs_and_blocks_nobody(shops: Shops, key: str, pool: str) -> None:
    """F13, F16: the strategy ends it when it is handed on; its permit goes to the next."""
    place = shops(pool)
    shops.hold(pool, key)
    revoked = place.send("one", key)
    successor = place.send("one", key)
    place.wait_counts(running=1, blocked=2)
    _revoke(place, revoked)
    place.touch(key)
    place.wait_ended(successor)
    check(place, revoked, REVOKED)


@pytest.mark.parametrize("pool", POOLS)
def test_a_blocked_task_that_expires_never_runs_and_blocks_nobody(shops: Shops, key: str, pool: str) -> None:
    """F13, F16, L17."""
    place = shops(pool)
    shops.hold(pool, key)
    until = datetime.now(UTC) + timedelta(seconds=1)
    expired = place.send("one", key, options={"expires": until})
    successor = place.send("one", key)
    place.wait_counts(running=1, blocked=2)
    wait_until(lambda: datetime.now(UTC) > until, "it has expired")
    place.touch(key)
    place.wait_ended(successor)
    check(place, expired, REVOKED)


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_expired_in_the_queue_never_runs(shops: Shops, key: str, pool: str) -> None:
    """F13: it ends before the gate, and is the broker's to ack."""
    place = shops(pool)
    expired = place.send("one", key, options={"expires": datetime.now(UTC) - timedelta(seconds=1)})
    successor = place.send("one", key)
    place.wait_ended(successor)
    check(place, expired, REVOKED)


@pytest.mark.parametrize("pool", KILLING_POOLS)
def test_terminate_settles_and_frees_the_key(shops: Shops, key: str, pool: str) -> None:
    """F13: other pools cannot end a task."""
    place = shops(pool)
    task_id = place.send("ending", key, "sleep")
    place.wait_started(task_id)
    successor = place.send("one", key)
    place.wait_counts(running=1, blocked=1)
    place.app.control.revoke(task_id, terminate=True)
    place.wait_ended(successor)
    check(place, task_id, End("terminated", 1, "REVOKED"))


@pytest.mark.parametrize("pool", KILLING_POOLS)
def test_the_next_starts_only_when_a_terminated_task_is_over(shops: Shops, key: str, pool: str) -> None:
    """F14: it goes on for a while after it was told to stop."""
    place = shops(pool)
    lingering = place.send("lingering", key, 1.0)
    place.wait_started(lingering)
    successor = place.send("one", key)
    place.wait_counts(running=1, blocked=1)
    place.app.control.revoke(lingering, terminate=True)
    place.wait_ended(successor, lingering)
    last_sign = max(line["at"] for line in place.marks.lines() if line["id"] == lingering)
    assert place.marks.runs_of(successor)[0].started > last_sign
    check(place, lingering, End("terminate", 1, "REVOKED"))


@pytest.mark.parametrize("how", ["limit", "terminate"])
def test_the_next_starts_only_when_the_killed_child_is_dead(shops: Shops, key: str, how: str) -> None:
    """F14: Celery acks before the child is gone."""
    place = shops("prefork")
    options = {"time_limit": 1} if how == "limit" else {}
    stubborn = place.send("stubborn", key, 1.0, options=options)
    place.wait_started(stubborn)
    successor = place.send("one", key)
    place.wait_counts(running=1, blocked=1)
    if how == "terminate":
        place.app.control.revoke(stubborn, terminate=True)
        place.wait_state(stubborn, "REVOKED")
        place.touch(f"{stubborn}.stop")
    place.wait_ended(successor)
    child = place.marks.runs_of(stubborn)[0].pid
    wait_until(lambda: not Path(f"/proc/{child}").exists(), "the child is dead")
    last_sign = max(line["at"] for line in place.marks.lines() if line["id"] == stubborn)
    assert place.marks.runs_of(successor)[0].started > last_sign
    if how == "limit":
        check(place, stubborn, End("limit", 1, "FAILURE", "time_limit", "billiard.exceptions.TimeLimitExceeded"))
    else:
        check(place, stubborn, End("terminate", 1, "REVOKED"))


def _revoke(place: Place, task_id: str) -> None:
    """Revoke it; until the worker knows."""
    place.app.control.revoke(task_id)
    worker = place.crew.all[0]
    wait_until(lambda: worker.says(f"Tasks flagged as revoked: {task_id}"), "the worker knows")


@pytest.mark.parametrize("pool", POOLS)
def test_a_result_that_cannot_be_stored_ends_the_run_all_the_same(open_place: Opener, key: str, pool: str) -> None:
    """F13: Celery itself never acks such a task on threads. The letter says what is missing."""
    away = {"result_backend": "redis://127.0.0.1:1/0", "redis_socket_connect_timeout": 0.2}
    options = {"retry_policy": {"max_retries": 0, "timeout": 0.2}}
    place = open_place(conf={**away, "result_backend_transport_options": options})
    worker = place.worker(pool=pool, concurrency=2)
    task_id = place.send("one", key)
    successor = place.send("one", key)
    place.wait_ended(task_id, successor)
    place.wait_empty(timeout=20)
    assert len(place.marks.runs_of(task_id)) == 1
    assert place.wait_letter(task_id)["reason"] == "internal"
    assert not worker.has_ended
