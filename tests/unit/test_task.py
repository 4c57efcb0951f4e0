"""What a task declares, and what its calls are outside of a worker."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import Retry

from celery_backfill import BackfillTask, NonRetryableError
from celery_backfill.errors import ConfigurationError, InvalidKeyError


@pytest.fixture
def app() -> Celery:
    app = Celery("task", broker="memory://", set_as_current=False, task_cls=BackfillTask)
    app.conf.update(
        backfill_redis_url="redis://localhost/0",
        backfill_postgres_url="postgresql://localhost/app",
        backfill_limits={"tenant:vip": 9},
    )
    return app


def declared(app: Celery, **options: Any) -> BackfillTask:
    def charge(self: Any, tenant_id: Any, amount: int = 0) -> int:
        return amount

    name = f"charge_{uuid4().hex}"
    app.task(bind=True, shared=False, name=name, **options)(charge)
    task: BackfillTask = app.tasks[name]
    return task


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency_key": "k"}, "give both"),
        ({"concurrency_limit": 1}, "give both"),
        ({"concurrency_key": "k", "concurrency_limit": 0}, "at least 1"),
        ({"on_conflict": "discard"}, 'must be "wait"'),
        ({"concurrency_key": "k", "concurrency_limit": 1, "leased": False}, "cannot have leased=False"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(app: Celery, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        declared(app, **options).check_declaration()


def test_the_limits_of_a_call(app: Celery) -> None:
    """F5: its own key wins, and has the capacity that is set for it."""
    task = declared(app, concurrency_key="tenant:{tenant_id}", concurrency_limit=2)
    task.check_declaration()
    assert task.limits_of_call((7,), {}) == '[["tenant:7",2]]'
    assert task.limits_of_call((), {"tenant_id": "vip"}) == '[["tenant:vip",9]]'
    assert task.limits_of_call((7,), {}, "other") == '[["other",2]]'
    assert declared(app).limits_of_call((7,), {}) == ""
    with pytest.raises(InvalidKeyError):
        task.limits_of_call((), {})


def test_celerys_own_tasks_are_not_leased(app: Celery) -> None:
    """F23."""
    assert declared(app).is_leased
    assert not app.tasks["celery.chord_unlock"].is_leased
    assert not declared(app, leased=False).is_leased


def test_calls_outside_of_a_worker_are_celerys_own(app: Celery) -> None:
    """F20: direct and eager calls."""
    task = declared(app)
    assert task(7, 3) == 3
    assert task.apply((7, 4)).get() == 4
    assert task.lease is None


def test_an_eager_retry_is_celerys_own_and_a_permanent_error_still_ends_it(app: Celery) -> None:
    """F20, K1."""
    runs: list[int] = []

    @app.task(bind=True, shared=False, name="flaky", autoretry_for=(Exception,), max_retries=2, retry_backoff=False)
    def flaky(self: Any, permanent: bool) -> None:
        runs.append(self.request.retries)
        raise NonRetryableError if permanent else OSError

    assert isinstance(flaky.apply((False,)).result, OSError)
    assert runs == [0, 1, 2]
    runs.clear()
    assert isinstance(flaky.apply((True,)).result, NonRetryableError)
    assert runs == [0]


def test_a_retry_for_a_permanent_error_raises_it(app: Celery) -> None:
    """K3, K4: whatever ``throw`` says."""
    task = declared(app, non_retryable_for=(ValueError,))
    with pytest.raises(ValueError, match="bad"):
        task.retry(exc=ValueError("bad"), throw=False)
    assert not task.verdict_on(Retry("pass through")).permanent


def test_every_published_message_has_an_attempt_id_of_its_own(app: Celery) -> None:
    """F2, F5: custom headers are copied from message to message; a key given to a call is not."""
    task = declared(app)
    for options in ({"headers": {"backfill_id": "copied"}}, {"concurrency_key": "own"}, {}):
        task.apply_async((7,), queue="main", **options)
    app.send_task("elsewhere", queue="main", concurrency_key="foreign")
    messages = []
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["main"](connection.default_channel)
        while (message := queue.get(no_ack=True)) is not None:
            messages.append(message)
    ids = {message.headers["backfill_id"] for message in messages}
    assert len(ids) == 4
    assert "copied" not in ids
    assert [message.headers.get("backfill_key") for message in messages] == [None, "own", None, "foreign"]
    assert all("concurrency_key" not in message.properties for message in messages)


def test_a_producer_imports_nothing_of_the_workers_half() -> None:
    code = "import sys, celery_backfill; print([m for m in sys.modules if m.startswith('celery_backfill.worker')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
