"""BackfillTask: what a task declares, and where its retries meet classification."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn
from uuid import uuid4

from celery import Task, signals
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate
from celery.utils.imports import symbol_by_name

from .classify import Rule, Verdict, classify
from .errors import ConfigurationError, LeaseLostError, TaskExitedError, TaskOutOfMemoryError
from .leases.store import encode_limits
from .ledger import Stage
from .limits import Arguments, KeyTemplate, Limit, capacity_of, check_key
from .run import Lease, RetryAsked, RetryRecorder, Run, current_run
from .settings import ON_LEASE_LOST, Settings, check_lease_seconds

ATTEMPT_HEADER = "backfill_id"
KEY_HEADER = "backfill_key"
REQUEUE_HEADER = "backfill_requeue"
ROUTING_OPTIONS = frozenset({"queue", "exchange", "routing_key"})


class BackfillTask(Task):  # type: ignore[misc]
    """Base class of tasks that run under a lease, at most so many per key, and whose final failures are kept.

    Use it as ``base=`` of one task or as ``task_cls`` of an app. Everything else of a Celery task stays as it is.
    """

    abstract = True
    Strategy = "celery_backfill.worker.strategy:gated"

    #: Key template over the call's arguments (``"tenant:{tenant_id}"``) or callable(args, kwargs); with its capacity.
    concurrency_key: KeyTemplate | None = None
    concurrency_limit: int | None = None
    #: What to do with a call over its limit; ``"wait"`` is what there is so far.
    on_conflict = "wait"
    #: Exceptions (classes or dotted names) that fail the task at once, and those that never do.
    non_retryable_for: Sequence[Rule] = ()
    retryable_for: Sequence[Rule] = ()
    #: Lost workers survived before the task is dead as poison; None: the setting.
    max_stalls: int | None = None
    #: Length of its leases in seconds; None: the setting.
    lease_seconds: float | None = None
    #: False: plain Celery delivery, no store call at all. Only for tasks without a limit.
    leased = True
    #: Record its final failures.
    dead_letter = True
    #: Stop a run when its lease cannot be renewed in time, so that it never overlaps with the next.
    strict = False
    #: "raise" ``LeaseLostError`` in a run whose lease is lost, or "kill" its process (prefork); None: the setting.
    on_lease_lost: str | None = None

    @property
    def lease(self) -> Lease | None:
        """The lease of the running call: ``self.lease.token``. None outside a worker and for eager calls."""
        run = current_run(self.request)
        return run.lease if run else None

    @cached_property
    def limit(self) -> Limit | None:
        """The declared limit. Raises ``ConfigurationError`` when half of it is missing."""
        if self.concurrency_key is None and self.concurrency_limit is None:
            return None
        if self.concurrency_key is None or self.concurrency_limit is None:
            raise ConfigurationError(f"task {self.name}: give both concurrency_key and concurrency_limit, or neither")
        return Limit(self.concurrency_key, self.concurrency_limit)

    @property
    def is_leased(self) -> bool:
        """Whether its calls go through the lease store. Celery's own ``celery.*`` tasks never do."""
        return self.leased and not self.name.startswith("celery.")

    @property
    def is_strict(self) -> bool:
        """Whether its runs are stopped when their leases cannot be counted on any more."""
        return self.strict or Settings.of_app(self.app).strict

    @property
    def when_lease_lost(self) -> str:
        """What becomes of a run whose lease is lost: ``"raise"`` or ``"kill"``."""
        return self.on_lease_lost or Settings.of_app(self.app).on_lease_lost

    def check_declaration(self) -> None:
        """Raises ``ConfigurationError`` for what cannot work, before the first call."""
        if self.on_conflict != "wait":
            raise ConfigurationError(f'task {self.name}: on_conflict must be "wait", not {self.on_conflict!r}')
        if self.on_lease_lost not in (None, *ON_LEASE_LOST):
            choices = " or ".join(map(repr, ON_LEASE_LOST))
            raise ConfigurationError(f"task {self.name}: on_lease_lost must be {choices}, not {self.on_lease_lost!r}")
        check_lease_seconds(f"task {self.name}: lease_seconds", self.lease_seconds)
        if self.limit is not None and not self.leased:
            raise ConfigurationError(f"task {self.name}: a task with a limit cannot have leased=False")
        self.verdict_on(Exception())

    def limits_of_call(self, args: Sequence[Any], kwargs: Mapping[str, Any], key: str | None = None) -> str:
        """The limits of one call as the store takes them; ``key`` is the call's own, from ``apply_async``.

        Raises ``InvalidKeyError`` when the arguments give no key.
        """
        limit = self.limit
        if limit is None:
            return encode_limits(())
        resolved = limit.resolve(Arguments(self._signature, args, kwargs)) if key is None else check_key(key)
        configured = Settings.of_app(self.app).limits
        return encode_limits([(resolved, capacity_of(resolved, limit.capacity, configured))])

    def verdict_on(self, exc: BaseException) -> Verdict:
        """Whether ``exc`` is permanent for this task, and by which rule."""
        return classify(
            exc,
            non_retryable_for=self.non_retryable_for,
            retryable_for=self.retryable_for,
            app_non_retryable_for=Settings.of_app(self.app).non_retryable_for,
        )

    def retry(
        self, args: Any = None, kwargs: Any = None, exc: BaseException | None = None, throw: bool = True, **options: Any
    ) -> Any:
        """As Celery's, but a permanent error is raised at once, and nothing is published: the store runs it again."""
        cause = exc or sys.exc_info()[1]
        if isinstance(cause, LeaseLostError) or (cause is not None and self.verdict_on(cause).permanent):
            # A lost lease is no failure of the task: it costs a stall, not a retry.
            raise cause
        run = current_run(self.request)
        if run is None:
            return super().retry(args, kwargs, exc=exc, throw=throw, **options)
        return self._record_retry(run, args, kwargs, exc, throw, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; in a leased run, what would take the worker down is an ordinary failure.

        A run whose lease is lost ends as if it had never been: Celery stores no result and sends no link or chord part
        for it (F18).
        """
        run = current_run(self.request)
        if run is None:
            return super().__call__(*args, **kwargs)
        try:
            with run.inside:
                value = super().__call__(*args, **kwargs)
        except LeaseLostError as error:
            run.lost = error
        except (SystemExit, KeyboardInterrupt, MemoryError) as error:
            if _worker_is_stopping(error):
                raise
            run.end_body(Stage.RAISED)
            _raise_ordinary(error)
        except Exception as error:
            run.error = error
            run.end_body(Stage.RUNNING if isinstance(error, Retry | Ignore | Reject) else Stage.RAISED)
            if run.lost is None:
                raise
        else:
            run.end_body(Stage.RETURNED)
            if run.lost is None:
                return value
        raise Ignore(str(run.lost)) from run.lost

    def _record_retry(self, run: Run, args: Any, kwargs: Any, exc: Any, throw: bool, options: Mapping[str, Any]) -> Any:
        recorder = RetryRecorder(self.app)
        try:
            retry = super().retry(args, kwargs, exc=exc, throw=False, **{**options, "producer": recorder})
        except Reject:
            raise
        except Exception:
            run.retries_exhausted = True
            raise
        envelope = recorder.recorded
        assert envelope is not None
        sent = retry.sig
        run.retry = RetryAsked(
            delay=self._delay(options),
            message=envelope.encode(),
            limits=self.limits_of_call(sent.args, sent.kwargs, envelope.headers.get(KEY_HEADER)),
            rerouted=not ROUTING_OPTIONS.isdisjoint(options),
        )
        if throw:
            raise retry
        return retry

    def _delay(self, options: Mapping[str, Any]) -> float:
        """Seconds until a retry is due, from what ``retry()`` was given."""
        eta, countdown = options.get("eta"), options.get("countdown")
        if eta is not None:
            now = datetime.now(UTC) if eta.tzinfo else datetime.now()
            return max(0.0, float((eta - now).total_seconds()))
        return max(0.0, float(self.default_retry_delay if countdown is None else countdown))

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.run)


def _worker_is_stopping(error: BaseException) -> bool:
    """Whether it is the worker that ends the process, and not the task's code."""
    from billiard import common

    return isinstance(error, WorkerShutdown | WorkerTerminate) or common._should_have_exited[0]


def _raise_ordinary(error: BaseException) -> NoReturn:
    if isinstance(error, MemoryError):
        raise TaskOutOfMemoryError(f"the task ran out of memory: {error}") from error
    raise TaskExitedError(f"the task called for its process to exit: {error!r}") from error


def _name_the_attempt(headers: Any = None, properties: Any = None, **_: Any) -> None:
    """Give each published message its own attempt id, and carry a call's own key where the worker can read it.

    The id always overwrites: custom headers are copied into the messages that a task sends (F2). A key given to
    ``send_task`` or to a signature of a task unknown here lands in the message's properties (F5).
    """
    if headers is None or "task" not in headers:
        return
    headers[ATTEMPT_HEADER] = uuid4().hex
    if properties is not None and "concurrency_key" in properties:
        headers[KEY_HEADER] = properties.pop("concurrency_key")


def _prepare_worker(sender: Any, **_: Any) -> None:
    """A worker starts in this process: put the gate into it. Producers never import the worker's half."""
    symbol_by_name("celery_backfill.worker.step:add_steps")(sender.app)


signals.before_task_publish.connect(_name_the_attempt, weak=False)
signals.worker_init.connect(_prepare_worker, weak=False)
