"""A chaos world: servers, ways and workers of one kind, with a load, for faults to be put into."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from celery_backfill.settings import DEFAULTS
from tests.chaos.app import GOODS, RELEASE, Config, build
from tests.chaos.broker import Broker, RabbitBroker, RedisBroker
from tests.chaos.clock import Clock
from tests.chaos.history import History
from tests.chaos.load import Load
from tests.chaos.proxy import Network, Proxy
from tests.chaos.server import Server
from tests.chaos.workers import Worker

WORKERS = 3
CONCURRENCY = 2
PREFETCH = 2
LOOK_SECONDS = 0.05
DRAIN_SECONDS = 60.0
QUIET_SECONDS = 1.0
MUSTER_SECONDS = 30.0
SEEN_SECONDS = 1.0
#: What the store may keep when nothing runs or waits: memory of what was, not of what is.
HOLDING = ("a:", "h:", "l:", "kq:", "t:", "leases", "sched", "outbox")


@dataclass(frozen=True, slots=True)
class Kind:
    """Which broker and which pool. ``redis-same`` is one server for broker and store, ``redis-apart`` is two."""

    broker: str
    pool: str

    def __str__(self) -> str:
        return f"{self.broker}/{self.pool}"


KINDS = tuple(
    Kind(broker, pool) for pool in ("prefork", "threads") for broker in ("redis-same", "redis-apart", "rabbitmq")
)


@dataclass(frozen=True, slots=True)
class Ways:
    """One worker's ways to the servers. Where broker and store are one, so are their ways."""

    broker: Proxy
    store: Proxy
    postgres: Proxy

    def all(self) -> set[Proxy]:
        return {self.broker, self.store, self.postgres}


class World:
    """One world. ``lease_seconds`` None: the default. ``looks`` is called again and again while it waits.

    Without ``witness`` workers are not told of others on their host that are gone: only leases tell.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        folder: Path,
        network: Network,
        postgres_url: str,
        seed: int,
        lease_seconds: float | None = None,
        witness: bool = True,
        looks: Callable[[World], None] = lambda world: None,
    ) -> None:
        self.kind, self.folder = kind, folder
        self.lease = float(lease_seconds or DEFAULTS["backfill_lease_seconds"])
        self.namespace = f"chaos-{uuid.uuid4().hex[:10]}"
        self._network, self._postgres_url, self._looks = network, postgres_url, looks
        self._conf: dict[str, Any] = {"backfill_early_recovery": witness}
        if lease_seconds:
            self._conf["backfill_lease_seconds"] = lease_seconds
        #: What went wrong beside the tasks.
        self.complaints: list[str] = []
        self.killed_themselves = 0
        self.dice = random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = Clock(folder / "clock")
        self.store = Server(folder / "store")
        self.broker: Broker = self._make_broker()
        self.history = History(folder / "marks.log")
        self.workers: list[Worker] = []
        self._ways: dict[str, Ways] = {}
        self.load = Load(
            self.app,
            lease_seconds=self.lease,
            processes=kind.pool == "prefork",
            seed=seed,
            ended=lambda: self.history.read().ended,
        )

    def _make_broker(self) -> Broker:
        queue = f"{self.namespace}-main"
        if self.kind.broker == "rabbitmq":
            return RabbitBroker(queue)
        return RedisBroker(self.store if self.kind.broker == "redis-same" else Server(self.folder / "broker"), queue)

    @cached_property
    def app(self) -> Any:
        """The app that sends: straight to the broker."""
        return build(self._config(self.broker.url, _url_of(self.store.address), self._postgres_url))

    def _config(self, broker_url: str, store_url: str, postgres_url: str) -> Config:
        same = self.kind.broker == "redis-same"
        return Config(
            self.namespace, broker_url, None if same else store_url, postgres_url, str(self.folder), self._conf
        )

    # Workers.

    def start_worker(self, *, concurrency: int = CONCURRENCY) -> Worker:
        """One more worker, over ways of its own; not ready yet."""
        name = f"w{len(self._ways) + 1}@{self.namespace}"
        ways = self._ways[name] = self._open_ways()
        config = self._config(
            _through(self.broker.url, ways.broker),
            _through(_url_of(self.store.address), ways.store),
            _through(self._postgres_url, ways.postgres),
        )
        worker = Worker(
            name,
            environ=config.to_environ(),
            folder=self.folder,
            queue=self.broker.queue,
            pool=self.kind.pool,
            concurrency=concurrency,
            prefetch=PREFETCH,
        )
        self.workers.append(worker)
        return worker

    def start_workers(self, number: int = WORKERS) -> None:
        """Start several; all ready."""
        for worker in [self.start_worker() for _ in range(number)]:
            worker.wait_ready()

    def _open_ways(self) -> Ways:
        store = self._network.proxy_to(self.store.address)
        same = self.kind.broker == "redis-same"
        broker = store if same else self._network.proxy_to(self.broker.address)
        parts = urlsplit(self._postgres_url)
        return Ways(broker, store, self._network.proxy_to((parts.hostname or "", parts.port or 5432)))

    @property
    def alive(self) -> list[Worker]:
        """Workers that nobody has killed or told to end."""
        return [worker for worker in self.workers if worker.gone_at is None]

    def pick(self) -> Worker:
        """Any of them."""
        return self.dice.choice(self.alive)

    def ways(self, worker: Worker | None = None) -> list[Ways]:
        """The ways of one worker, or of all."""
        return [self._ways[worker.name]] if worker else list(self._ways.values())

    # Time.

    def wait(self, seconds: float) -> None:
        """Let so many seconds go by."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
            self.look()

    def wait_for(self, condition: Callable[[], Any], seconds: float) -> bool:
        """Whether it comes true in that time."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_SECONDS)
            self.look()
        return True

    def look(self) -> None:
        """Take up what has been marked; show it."""
        self.history.read()
        for worker in self.alive:
            if worker.is_lost:
                self._replace(worker)
        self._looks(self)

    def _replace(self, worker: Worker) -> None:
        """Start another, as whoever supervises workers does.

        Where strict tasks share the worker's process, it kills itself rather than outlive their leases.
        """
        worker.gone_at = time.monotonic()
        if self.kind.pool != "prefork" and worker.was_killed:
            self.killed_themselves += 1
        else:
            self.complain(f"{worker.name} has ended by itself: {worker.tail().splitlines()[-1:]}")
        self.start_worker()

    def complain(self, text: str) -> None:
        """Something went wrong that no mark tells."""
        self.complaints.append(text)

    def letters(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """How many failures PostgreSQL has of each task, and with which reasons."""
        with psycopg.connect(self._postgres_url) as connection:
            query = "SELECT task_id, array_agg(reason) FROM backfill_failures GROUP BY task_id"
            return {task_id: (len(reasons), tuple(reasons)) for task_id, reasons in connection.execute(query)}

    # The end.

    def drain(self, *, muster: bool = True) -> list[str]:
        """Send no more and wait until all is done, and every worker works; what is left when that takes too long."""
        self.load.stop()
        self._wait_quiet()
        if muster:
            self._muster()
            self._wait_quiet()
        return self.left_over()

    def _wait_quiet(self) -> None:
        quiet_since: list[float] = []

        def quiet() -> bool:
            if self.left_over():
                quiet_since.clear()
            elif not quiet_since:
                quiet_since.append(time.monotonic())
            return bool(quiet_since) and time.monotonic() - quiet_since[0] >= QUIET_SECONDS

        self.wait_for(quiet, DRAIN_SECONDS)

    def _muster(self) -> None:
        """After all faults every worker must be able to work: there are tasks for all slots, and they wait for all."""
        for _ in range(len(self.alive) * CONCURRENCY * (1 + PREFETCH)):
            self.load.send(GOODS[-1], 1, "hold")

        def idle() -> list[str]:
            now = Counter(run.worker for run in self.history.running(time.monotonic() - SEEN_SECONDS))
            return [one.name for one in self.alive if now[one.name] < CONCURRENCY]

        self.wait_for(lambda: not idle(), MUSTER_SECONDS)
        for name in idle():
            self.complain(f"{name} does not work any more, though nothing hinders it")
        (self.folder / RELEASE).touch()

    def left_over(self) -> list[str]:
        """What the store or the broker still holds, by name."""
        prefix = f"{{{self.namespace}}}:"
        keys = [key.decode().removeprefix(prefix) for key in self.store.client.scan_iter(f"{prefix}*", count=1000)]
        held = [key for key in keys if key.startswith(HOLDING) and not self._is_empty_outbox(prefix, key)]
        return held + self.broker.left_over()

    def _is_empty_outbox(self, prefix: str, key: str) -> bool:
        return key == "outbox" and self.store.client.xlen(prefix + key) == 0

    def dismiss(self) -> list[str]:
        """Warm shutdown of all workers; the names of those that did not end."""
        for worker in self.workers:
            worker.ask_to_end()
        return [worker.name for worker in self.workers if not worker.wait_ended()]

    def close(self) -> None:
        """End everything, at once, and leave nothing behind but the folder; whatever fails, the rest is done."""
        with ExitStack() as last:
            for step in (self.store.stop, self.broker.close, self._close_app, self.load.stop):
                last.callback(step)
            for worker in self.workers:
                last.callback(worker.remove)

    def _close_app(self) -> None:
        with suppress(Exception):
            self.app.close()


def _url_of(address: tuple[str, int]) -> str:
    return f"redis://{address[0]}:{address[1]}/0"


def _through(url: str, way: Proxy) -> str:
    """The same URL by way of a proxy."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    place = f"127.0.0.1:{way.port}"
    return urlunsplit(parts._replace(netloc=f"{login}@{place}" if login else place))
