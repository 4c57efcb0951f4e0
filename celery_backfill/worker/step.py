"""The bootsteps that put the gate into a worker, and compose what it is made of."""

from __future__ import annotations

import logging
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from celery import bootsteps, signals

from ..deadletters.store import Letters
from ..doctor import start_findings
from ..errors import ConfigurationError
from ..events import emit
from ..leases.endings import Endings
from ..leases.outbox import Outbox
from ..leases.store import Epoch, LeaseStore, Terms
from ..leases.wire import Wire
from ..ledger import share
from ..settings import Settings
from ..task import BackfillTask
from .announcement import Site
from .endings import Announcer, WorkerEvents
from .exits import notice_exits
from .flush import keep_written_jobs
from .gate import Gate
from .heartbeat import Heartbeat
from .holder import Holder
from .inside import prepare_child
from .intake import Intake
from .lane import Lane
from .prefetch import count_running, finish_reading
from .shipper import Shipper
from .shutdown import take_over
from .slots import counts_in_semaphore, slots_of
from .stopper import Stopper
from .timing import Timing
from .wakers import LoopWaker, ThreadWaker
from .witness import Presence, Witness

#: How long the heartbeat's own connection waits for an answer; the gate's may not hold up the event loop.
PATIENT_SECONDS = 1.0
SETTLE_AT_END_SECONDS = 5.0
SHIP_AT_END_SECONDS = 5.0
ANNOUNCE_AT_END_SECONDS = 5.0


class GateStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs a gate and its heartbeat in a worker that knows leased tasks."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        worker.backfill_gate = None
        super().__init__(worker, **options)

    def include_if(self, worker: Any) -> bool:
        return bool(_leased_tasks(worker.app))

    def create(self, worker: Any) -> None:
        """Compose everything. Settings or declarations that cannot work end the worker with a line that says why."""
        app = worker.app
        tasks = _leased_tasks(app)
        try:
            settings = Settings.of_app(app)
            for task in tasks:
                task.check_declaration()
        except ConfigurationError as error:
            raise SystemExit(f"celery_backfill cannot start: {error}") from error
        self.findings = start_findings(app, settings)
        for finding in self.findings:
            if finding.fatal:
                raise SystemExit(f"celery_backfill cannot start: {finding.text}; {finding.advice}")
        self._compose(worker, settings, tasks)
        # Renewals go on until the pool has drained, however it is stopped.
        take_over(worker, self.gate, self._pool_ended)

    def _compose(self, worker: Any, settings: Settings, tasks: list[BackfillTask]) -> None:
        app, pool = worker.app, worker.pool
        name = f"{worker.hostname}/{uuid4().hex[:8]}"
        leases = [task.lease_seconds or settings.lease_seconds for task in tasks]
        timing = Timing(shortest=min(leases), longest=max(leases))
        # Before the pool forks: its processes share both.
        shared, self.presence = share(), Presence.open() if settings.early_recovery else Presence()
        identity = self.presence.identity
        terms = Terms(longest_lease=timing.longest, gap=timing.gap, host=identity.rsplit("/", 3)[0])
        epoch = Epoch(Epoch.NONE)
        self.waker = LoopWaker(worker.hub, self._drain) if worker.hub else ThreadWaker(self._drain)
        self.wires = (Wire(settings.redis_url), Wire(settings.redis_url, timeout=PATIENT_SECONDS))
        stores = [LeaseStore(wire, settings.namespace, epoch=epoch, terms=terms) for wire in self.wires]
        lane = Lane(stores[0], name, timing, shared)
        strict = any(task.is_strict for task in tasks)
        self.stopper = Stopper(timing, lane.held, in_processes=_in_processes(pool), strict=strict)
        intake = Intake(app, settings, worker_name=worker.hostname, pool=pool)
        self.gate = worker.backfill_gate = Gate(
            lane=lane,
            slots=slots_of(worker, self.waker),
            intake=intake,
            pool=pool,
            stopper=self.stopper,
            wake=self.waker,
            due=self._due,
            defers=counts_in_semaphore(worker),
        )
        self.holder = Holder(lane=lane, intake=intake, stopper=self.stopper, gate=self.gate)
        self.heartbeat = Heartbeat(
            store=stores[1],
            worker=name,
            holder=self.holder,
            tasks=tuple(task.name for task in tasks),
            timing=timing,
            identity=identity,
            is_gone=Witness().is_gone,
        )
        self.shipper = Shipper(
            outbox=Outbox.at(settings.redis_url, settings.namespace),
            letters=Letters.at(settings.postgres_url),
            reader=name,
        )
        self.announcer = Announcer(
            site=Site(app, worker.hostname, WorkerEvents(worker)),
            endings=Endings.at(settings.redis_url, settings.namespace),
            reader=name,
        )
        self.about = {
            "leased_tasks": len(tasks),
            "lease_seconds": settings.lease_seconds,
            "dedupe_seconds": settings.dedupe_seconds,
        }
        signals.worker_process_init.connect(prepare_child, weak=False)

    def start(self, worker: Any) -> None:
        keep_written_jobs(worker.pool)
        notice_exits(worker.pool)
        self.heartbeat.start()
        self.stopper.start()
        self.shipper.start()
        self.announcer.start()
        emit("gate_ready", worker=worker.hostname, acks="a leased task is acked when the store has it", **self.about)
        for finding in self.findings:
            emit("start_check", finding.log_level, **finding.facts)
        if not worker.hub:
            self.waker.register()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        self.waker.register()

    def stop(self, worker: Any) -> None:
        finish_reading(worker.consumer)
        self.gate.close()

    def terminate(self, worker: Any) -> None:
        self.gate.close()

    def _drain(self) -> None:
        self.gate.drain()

    def _due(self, seconds: float) -> None:
        self.heartbeat.due(seconds)

    def _pool_ended(self) -> None:
        self.gate.pool_ended()
        until = monotonic() + SETTLE_AT_END_SECONDS
        while not self.gate.settle_rest() and monotonic() < until:
            sleep(0.1)
        if self.holder.runs:
            # In threads of this process, which Python waits for at its end: they keep their leases until then.
            emit("runs_go_on", logging.WARNING, runs=self.holder.runs)
            self.heartbeat.stop_when_empty(self._close)
        else:
            self.heartbeat.stop()
            self._close()

    def _close(self) -> None:
        self.announcer.stop(0)
        self.shipper.stop(SHIP_AT_END_SECONDS)
        self.announcer.stop(ANNOUNCE_AT_END_SECONDS)
        self.stopper.close()
        self.waker.close()
        for wire in self.wires:
            wire.close()
        self.presence.close()


class LinkStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells the gate of each new connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        gate: Gate | None = getattr(consumer.controller, "backfill_gate", None)
        if gate is not None:
            gate.attach(consumer)
            count_running(consumer, lambda: gate.held)


def add_steps(app: Any) -> None:
    """Put the gate into the workers of an app."""
    app.steps["worker"].add(GateStep)
    app.steps["consumer"].add(LinkStep)


def _leased_tasks(app: Any) -> list[BackfillTask]:
    return [task for task in app.tasks.values() if isinstance(task, BackfillTask) and task.is_leased]


def _in_processes(pool: Any) -> bool:
    """Whether each run has a process of its own."""
    return bool(getattr(pool, "uses_semaphore", False))
