"""Examines an app and its servers: ``backfill doctor``, and the checks a worker makes when it starts.

Every trouble is a finding, none an exception, and no server can hold it up: who has not answered in time is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Thread
from time import monotonic
from typing import Any

from .deadletters import doctor as deadletters
from .declared import STAND_INS, import_tasks, look_at_celery, look_at_tasks, read_settings
from .findings import Finding
from .leases import doctor as leases
from .settings import Settings

BROKER_KEYS = ("unacked_index", "unacked")
PATIENCE_SECONDS = 15.0
START_SECONDS = 1.0

Question = Callable[[], list[Finding]]


def examine(app: Any) -> list[Finding]:
    """Everything: settings, tasks, Redis, PostgreSQL. Takes a quarter of a minute at the longest."""
    settings, found = read_settings(app)
    unusable = import_tasks(app)
    if settings is None:
        return [*found, *unusable]
    # Tasks are judged by the settings, so only by those that can be used.
    if not unusable and all(finding.level == "ok" for finding in found):
        found += [*look_at_tasks(app), *look_at_celery(app, settings)]
    return [*found, *unusable, *_ask(_questions(settings), PATIENCE_SECONDS)]


def start_findings(app: Any, settings: Settings, *, seconds: float = START_SECONDS) -> list[Finding]:
    """What a worker should say when it starts: all that is not as it should be. Takes ``seconds`` at the longest."""
    found = [*look_at_celery(app, settings), *_ask(_questions(settings), seconds)]
    return [finding for finding in found if finding.level != "ok"]


def _questions(settings: Settings) -> Mapping[str, Question]:
    """What to ask the servers, without those whose URL is a stand-in."""
    broker_keys = BROKER_KEYS if settings.broker_is_store else ()

    def redis() -> list[Finding]:
        return leases.examine(
            settings.redis_url, settings.namespace, lease_seconds=settings.lease_seconds, broker_keys=broker_keys
        )

    def postgres() -> list[Finding]:
        return deadletters.examine(settings.postgres_url)

    questions: dict[str, Question] = {}
    if settings.redis_url != STAND_INS["backfill_redis_url"]:
        questions["redis"] = redis
    if settings.postgres_url != STAND_INS["backfill_postgres_url"]:
        questions["postgres"] = postgres
    return questions


def _ask(questions: Mapping[str, Question], seconds: float) -> list[Finding]:
    """The answers, in the order of the questions. The thread of one that does not answer in time is left behind."""
    answers: dict[str, list[Finding]] = {}

    def ask(name: str) -> None:
        try:
            answers[name] = questions[name]()
        except Exception as error:
            answers[name] = [Finding(name, "error", f"it cannot be examined: {type(error).__name__}")]

    threads = [Thread(target=ask, args=(name,), name=f"backfill-doctor-{name}", daemon=True) for name in questions]
    for thread in threads:
        thread.start()
    until = monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
    return [finding for name in questions for finding in answers.get(name) or [_silent(name, seconds)]]


def _silent(name: str, seconds: float) -> Finding:
    advice = f"check backfill_{name}_url; everything flows once it answers"
    return Finding(name, "error", f"it does not answer within {seconds:g} s", advice)
