"""Celery's strategy for leased tasks: its own, with our gate where it hands a request to the worker."""

from __future__ import annotations

from typing import Any

from celery.utils.imports import symbol_by_name
from celery.worker.consumer import Consumer
from celery.worker.strategy import default

from .gate import Gate
from .request import LeasedRequest
from .target import run_leased


def gated(task: Any, app: Any, consumer: Any) -> Any:
    """``Task.Strategy`` of BackfillTask: messages go through the gate, or as ever where it is not leased."""
    gate: Gate | None = getattr(consumer.controller, "backfill_gate", None)
    if gate is None or not task.is_leased:
        return default(task, app, consumer)
    _own_delivery(task)
    base = symbol_by_name(task.Request)
    if not issubclass(base, LeasedRequest):
        bases = (LeasedRequest,) if issubclass(LeasedRequest, base) else (LeasedRequest, base)
        task.Request = type("LeasedRequest", bases, {"gate": gate})
    else:
        base.gate = gate
    return default(task, app, GatedConsumer(consumer, gate))


def _own_delivery(task: Any) -> None:
    """Celery's settings of when a broker's message is acked mean nothing under a lease; the worker's start says so."""
    task.acks_late = True
    task.reject_on_worker_lost = True
    for name in ("acks_on_failure", "acks_on_timeout", "acks_on_failure_or_timeout"):
        if hasattr(task, name):
            setattr(task, name, True)
    if hasattr(task, "retry_on_worker_lost"):
        task.retry_on_worker_lost = False


class GatedConsumer:
    """A consumer as the default strategy sees it, with the gate in the place of the worker's pool.

    The rate limit and ETA of Celery are its consumer's own code, bound to this one, so that they too end at the gate.
    """

    def __init__(self, consumer: Any, gate: Gate) -> None:
        self._consumer = consumer
        self.on_task_request = gate.offer
        self.pool = GatedPool(consumer.pool)
        self._limit_order = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    apply_eta_task = Consumer.apply_eta_task
    _limit_task = Consumer._limit_task
    _limit_post_eta = Consumer._limit_post_eta
    _limit_move_to_pool = Consumer._limit_move_to_pool
    _schedule_bucket_request = Consumer._schedule_bucket_request


class GatedPool:
    """A pool as Celery's generated request sees it: what it applies runs under the request's lease."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def apply_async(self, trace: Any, args: Any, callback: Any, **options: Any) -> Any:
        """Run ``trace`` inside our target. From here on the slot is the pool's, until the run has ended."""
        request = callback.__self__
        held = request.held
        ticket = request.gate.dispatch(held)
        try:
            return self._pool.apply_async(
                run_leased, args=(ticket, trace, *args), callback=request.on_result, **options
            )
        except BaseException:
            held.dispatched = False
            raise
