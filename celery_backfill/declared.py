"""What an app declares, looked at before anything runs: settings, tasks, and Celery's own settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConfigurationError
from .findings import Finding
from .settings import DEFAULTS, RENEWALS_PER_LEASE, Settings
from .task import BackfillTask

#: In the place of a setting that cannot be used, so that the others can be read.
STAND_INS: Mapping[str, Any] = {
    **DEFAULTS,
    "backfill_redis_url": "redis://",
    "backfill_postgres_url": "postgresql://",
}

#: Celery's settings of when a message is acked, with their defaults. A leased one is acked when the store has it.
IGNORED: Mapping[str, bool | None] = {
    "task_acks_late": False,
    "task_acks_on_failure_or_timeout": True,
    "task_acks_on_failure": None,
    "task_acks_on_timeout": None,
    "task_reject_on_worker_lost": False,
    "task_retry_on_worker_lost": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


class Corrected:
    """An app with some of its settings replaced."""

    def __init__(self, app: Any, conf: Mapping[str, Any]) -> None:
        self._app, self.conf = app, _Conf(app.conf, conf)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class _Conf:
    def __init__(self, conf: Any, replaced: Mapping[str, Any]) -> None:
        self._conf, self._replaced = conf, replaced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conf, name)

    def get(self, name: str, default: Any = None) -> Any:
        return self._replaced[name] if name in self._replaced else self._conf.get(name, default)


def read_settings(app: Any) -> tuple[Settings | None, list[Finding]]:
    """The settings, with a finding and a stand-in for each that cannot be used; None when nothing can be read."""
    replaced: dict[str, Any] = {}
    found: list[Finding] = []
    while True:
        try:
            settings = Settings.of(Corrected(app, replaced))
        except ConfigurationError as error:
            found.append(Finding("settings", "error", str(error)))
            name = next((name for name in DEFAULTS if name in str(error) and name not in replaced), None)
            if name is None:
                return None, found
            replaced[name] = STAND_INS[name]
        except Exception as error:
            text = f"the settings cannot be read: {type(error).__name__}"
            return None, [*found, Finding("settings", "error", text, "check broker_url and the backfill_ settings")]
        else:
            return settings, found or [_lease_length(settings)]


def import_tasks(app: Any) -> list[Finding]:
    """Import the modules with the app's tasks and register them, as a worker does at its start."""
    try:
        app.loader.import_default_modules()
        app.finalize()
    except Exception as error:
        text = f"the app's tasks cannot be imported: {type(error).__name__}: {error}"
        return [Finding("tasks", "error", text, "see include, imports and autodiscover_tasks")]
    return []


def look_at_tasks(app: Any) -> list[Finding]:
    """Which tasks are leased, and what they declare that cannot work."""
    ours = [task for task in app.tasks.values() if isinstance(task, BackfillTask)]
    leased = sum(task.is_leased for task in ours)
    wrong = [finding for task in ours for finding in _look_at_task(task)]
    if wrong:
        return wrong
    if not leased:
        advice = 'Celery(..., task_cls="celery_backfill:BackfillTask"), or base=BackfillTask on a task'
        return [Finding("tasks", "warning", "no task of this app is leased", advice)]
    return [Finding("tasks", "ok", f"leased tasks: {leased}; what they declare can work")]


def look_at_celery(app: Any, settings: Settings) -> list[Finding]:
    """Celery's own settings, as far as they matter to leased tasks."""
    found = [_delivery(app, settings), *_ignored(app), _prefetch(app), _results(app)]
    if app.conf.task_always_eager:
        text = "task_always_eager is on: calls run in the caller's process, without a lease and without limits"
        found.append(Finding("eager", "warning", text, "unset it outside of tests"))
    return found


def _look_at_task(task: BackfillTask) -> Iterable[Finding]:
    try:
        task.check_declaration()
    except Exception as error:
        text = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
        yield Finding("tasks", "error", text if task.name in text else f"task {task.name}: {text}")


def _lease_length(settings: Settings) -> Finding:
    every = settings.lease_seconds / RENEWALS_PER_LEASE
    text = f"leases last {settings.lease_seconds:g} s and are renewed every {every:g} s"
    return Finding("settings", "ok", f"{text}; a lost worker's tasks run again that soon")


def _delivery(app: Any, settings: Settings) -> Finding:
    if settings.broker_is_store:
        text = "broker and store are one Redis database: a message is acked in the step that stores it"
        return Finding("broker", "ok", text)
    kind = str(app.connection_for_read().transport_cls)
    text = f"the broker ({kind}) is not the store: a message is acked once the store has it, and if it is delivered"
    return Finding("broker", "ok", f"{text} again within {settings.dedupe_seconds:g} s it is known and dropped")


def _ignored(app: Any) -> Iterable[Finding]:
    names = [name for name, default in IGNORED.items() if app.conf.get(name, default) not in (default, None)]
    names += sorted(f"{task.name}.acks_late" for task in app.tasks.values() if _acks_late_itself(app, task))
    if names:
        text = f"without a meaning for leased tasks: {', '.join(names)}"
        yield Finding("ignored", "info", text, "a leased task is acked when the store has it")
    timeout = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    if timeout is not None:
        text = f"visibility_timeout ({timeout:g} s) bounds no leased task, only how long a message may be prefetched"
        yield Finding("visibility_timeout", "info", text)


def _acks_late_itself(app: Any, task: Any) -> bool:
    leased = isinstance(task, BackfillTask) and task.is_leased
    return leased and bool(task.acks_late) and not app.conf.task_acks_late


def _prefetch(app: Any) -> Finding:
    number = app.conf.worker_prefetch_multiplier
    if not number:
        text = "worker_prefetch_multiplier is 0: a worker reads the whole queue into its memory"
        return Finding("prefetch", "warning", text, "worker_prefetch_multiplier = 1 leaves most to idle workers")
    text = f"up to {number} messages a pool slot are read ahead and wait unacked (worker_prefetch_multiplier)"
    return Finding("prefetch", "ok", text)


def _results(app: Any) -> Finding:
    if app.conf.result_backend:
        return Finding("results", "ok", "a result backend is configured")
    return Finding("results", "ok", "no result backend is configured: no results, no chords")
