"""The app of a chaos world: in its workers, and in the process that sends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from celery_backfill import events
from celery_backfill.leases.store import LeaseStore
from tests.chaos.clock import Clock, give_to_stores
from tests.chaos.marks import PlannedError, Scribe, Ticker

VARIABLE = "CHAOS"
RELEASE = "release"
VISIBILITY_SECONDS = 6
RETRIES = 2


class Flaky(PlannedError):
    """Is retried."""


class Doomed(PlannedError):
    """Is never retried."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a worker must know of its world. ``store_url`` is None where the broker is the store."""

    namespace: str
    broker_url: str
    store_url: str | None
    postgres_url: str
    folder: str
    conf: Mapping[str, Any] = field(default_factory=dict)

    @property
    def queue(self) -> str:
        return f"{self.namespace}-main"

    @classmethod
    def from_environ(cls) -> Config:
        return cls(**json.loads(os.environ[VARIABLE]))

    def to_environ(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


@dataclass(frozen=True, slots=True)
class Goods:
    """A kind of task: its name, its key with the limit (0: none), and whether it is stopped at its lease's deadline."""

    name: str
    key: str
    limit: int
    strict: bool


GOODS = (
    Goods("chaos.strict1", "one", 1, True),
    Goods("chaos.strict2", "two", 2, True),
    Goods("chaos.strict3", "three", 3, True),
    Goods("chaos.loose1", "loose-one", 1, False),
    Goods("chaos.loose2", "loose-two", 2, False),
    Goods("chaos.free", "", 0, False),
)


def build(config: Config) -> Celery:
    """The app of a world. There is no result backend: a world counts what the store settles."""
    app = Celery("chaos", task_cls="celery_backfill:BackfillTask", broker=config.broker_url)
    app.conf.update(
        backfill_dedupe_seconds=7200,
        backfill_max_stalls=100,
        backfill_namespace=config.namespace,
        backfill_postgres_url=config.postgres_url,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        task_default_queue=config.queue,
        task_ignore_result=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=True,
    )
    if config.broker_url.startswith("redis"):
        app.conf.broker_transport_options = {
            "visibility_timeout": VISIBILITY_SECONDS,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # Kombu's lock of those who restore: a worker that is killed while it has it leaves it behind.
            "unacked_mutex_expire": 2,
        }
    else:
        app.conf.broker_transport_options = {"confirm_publish": True}
    if config.store_url:
        app.conf.backfill_redis_url = config.store_url
    app.conf.update(config.conf)
    for goods in GOODS:
        _declare(app, goods, Scribe(Path(config.folder) / "marks.log"), Path(config.folder))
    return app


def prepare_worker(config: Config) -> None:
    """In a worker only: the world's clock; and, among the marks, the library's events and what it settles."""
    folder = Path(config.folder)
    give_to_stores(Clock(folder / "clock"))
    scribe = Scribe(folder / "marks.log")
    name = os.environ.get("CHAOS_WORKER", "")

    def note(action: str, **facts: Any) -> None:
        scribe.write("event", action=action, worker=name, facts=facts)

    events.subscribe(lambda event: note(event.action, **event.facts))
    send = LeaseStore.send_settlement

    def noted(store: LeaseStore, call: Any, attempt: str, token: int, ending: Any, **options: Any) -> None:
        note("settle", attempt=attempt, token=token, outcome=ending.outcome)
        send(store, call, attempt, token, ending, **options)

    LeaseStore.send_settlement = noted  # type: ignore[method-assign, assignment]


def _declare(app: Celery, goods: Goods, scribe: Scribe, folder: Path) -> None:
    limit = {"concurrency_key": "{key}", "concurrency_limit": goods.limit} if goods.limit else {}

    @app.task(
        name=goods.name,
        bind=True,
        shared=False,
        strict=goods.strict,
        autoretry_for=(Flaky,),
        non_retryable_for=(Doomed,),
        max_retries=RETRIES,
        default_retry_delay=0.5,
        retry_backoff=False,
        **limit,
    )
    def work(self: Any, key: str, ticks: int, plan: str) -> None:
        """Work for so many ticks and end as planned (see ``PLANS``)."""
        about = {"key": key, "limit": goods.limit, "strict": goods.strict}
        with scribe.run(self, **about) as ticker:
            for left in range(ticks, 0, -1):
                ticker.tick()
                if left == ticks // 2 + 1:
                    _halfway(plan, folder / f"died-{self.request.id}", self.lease.token)
            _end(plan, self.request.retries, ticker, folder / RELEASE)


def _halfway(plan: str, died: Path, token: int) -> None:
    """A task that kills its own process does so in one run only."""
    if plan == "die" and not died.exists():
        died.write_text(str(token))
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def _end(plan: str, retries: int, ticker: Ticker, release: Path) -> None:
    if plan == "fail":
        raise Doomed("as planned")
    if plan == "exhaust" or (plan == "retry" and retries < RETRIES):
        raise Flaky("as planned")
    while plan == "hold" and not release.exists():
        ticker.tick()


#: How a task can be told to end, and whether that is a success.
PLANS = {"ok": True, "retry": True, "fail": False, "exhaust": False, "die": True, "hold": True}
