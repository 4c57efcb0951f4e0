"""The app of the worker tests: built from the environment in a worker, from a ``Place`` in a test."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject, Retry

from celery_backfill import NonRetryableError
from tests.worker.marks import Marks

POLL_SECONDS = 0.005
#: With a file of this name in its folder no task waits any longer.
CLOSING = "closing"


class Declined(Exception):
    """Declared as non-retryable by the tasks below."""


class CardExpired(Declined):
    """A subclass of what is declared."""


class Unpicklable(Exception):
    """Cannot be sent from a pool process to its parent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.handle = lambda: text

    def __str__(self) -> str:
        raise RuntimeError("no words")


class UnpicklableForGood(Unpicklable):
    """Permanent as well."""

    retryable = False


def build(environ: Mapping[str, str]) -> Celery:
    """The app that ``environ`` describes (see ``Place.environ``)."""
    namespace = environ["SHOP_NAMESPACE"]
    redis_url = environ["SHOP_REDIS_URL"]
    app = Celery("shop", task_cls="celery_backfill:BackfillTask", broker=redis_url, backend=redis_url)
    app.conf.update(
        backfill_postgres_url=environ["SHOP_POSTGRES_URL"],
        backfill_namespace=namespace,
        backfill_lease_seconds=3,
        broker_connection_retry_on_startup=True,
        control_exchange=namespace,
        event_exchange=namespace,
        result_backend_transport_options={"global_keyprefix": f"{namespace}:"},
        task_acks_late=True,
        task_default_queue=f"{namespace}-main",
        task_publish_retry=False,
        worker_hijack_root_logger=True,
    )
    app.conf.update(json.loads(environ.get("SHOP_CONF", "{}")))
    folder = Path(environ["SHOP_FOLDER"])
    for declare in map(PARTS.__getitem__, environ.get("SHOP_PARTS", "goods").split()):
        declare(app, Marks(folder / "marks.log"), folder)
    return app


def _wait_for(folder: Path, name: str | None) -> None:
    while name and not (folder / name).exists() and not (folder / CLOSING).exists():
        time.sleep(POLL_SECONDS)


def _declare_goods(app: Celery, marks: Marks, folder: Path) -> None:
    """Tasks that take a key, run for some seconds or until a file is there, and mark it."""

    def work(self: Any, key: str, seconds: float = 0.0, until: str | None = None, value: Any = None) -> Any:
        with marks.around(self, key):
            time.sleep(seconds)
            _wait_for(folder, until)
            return value

    options: dict[str, Any] = {"bind": True, "shared": False, "concurrency_key": "{key}"}
    app.task(name="shop.one", concurrency_limit=1, **options)(work)
    app.task(name="shop.two", concurrency_limit=2, **options)(work)
    app.task(name="shop.three", concurrency_limit=3, **options)(work)
    app.task(name="shop.free", bind=True, shared=False)(work)
    app.task(name="shop.plain", bind=True, shared=False, leased=False)(work)

    @app.task(name="shop.collect", **options, concurrency_limit=1)
    def collect(self: Any, values: list[Any], key: str) -> Any:
        """A chord's body: passes on what it was given."""
        with marks.around(self, key):
            return values

    @app.task(name="shop.add", **options, concurrency_limit=1)
    def add(self: Any, number: int, key: str, more: int = 1) -> int:
        with marks.around(self, key):
            return number + more

    @app.task(name="shop.keyless", bind=True, shared=False, concurrency_key="{nobody}", concurrency_limit=1)
    def keyless(self: Any, key: str) -> None:
        """Its key cannot be made."""
        with marks.around(self, key):
            return

    _declare_retries(app, marks, folder, options)
    _declare_ends(app, marks, folder, options)


def _declare_retries(app: Celery, marks: Marks, folder: Path, options: Mapping[str, Any]) -> None:
    retrying: dict[str, Any] = {
        **options,
        "concurrency_limit": 1,
        "max_retries": 2,
        "default_retry_delay": 0,
        "non_retryable_for": (Declined,),
    }

    @app.task(name="shop.flaky", autoretry_for=(Exception,), retry_backoff=False, retry_jitter=False, **retrying)
    def flaky(self: Any, key: str, fails: int = 99, error: str = "OSError", until: str | None = None) -> str:
        """Fails its first runs, with an error by name, and is retried by Celery's autoretry."""
        with marks.around(self, key, headers=dict(self.request.headers or {}), stamps=self.request.stamps):
            _wait_for(folder, until)
            if self.request.retries < fails:
                raise ERRORS[error](error)
            return "done"

    @app.task(name="shop.again", **retrying)
    def again(self: Any, key: str, how: str, number: int = 0, **options: Any) -> Any:
        """Calls ``retry()`` in the way named by ``how``."""
        with marks.around(self, key, number=number):
            if self.request.retries:
                return number
            if how == "new_args":
                raise self.retry(args=(key, how), kwargs={"number": number + 1}, **options)
            if how == "not_thrown":
                self.retry(throw=False, **options)
                return "first"
            if how == "swallowed":
                try:
                    self.retry(**options)
                except Retry:
                    return "first"
            if how == "permanent":
                raise self.retry(exc=Declined("card"), **options)
            raise self.retry(**options)


def _declare_ends(app: Celery, marks: Marks, folder: Path, options: Mapping[str, Any]) -> None:
    @app.task(name="shop.ending", max_stalls=1, concurrency_limit=1, **options)
    def ending(self: Any, key: str, how: str) -> Any:
        """Ends in the way named by ``how``, or in a function of ``ENDS``."""
        with marks.around(self, key):
            return ENDS[how](folder / self.request.id)

    @app.task(name="shop.stubborn", **options, concurrency_limit=1)
    def stubborn(self: Any, key: str, seconds: float) -> None:
        """Goes on for so many seconds after it was told to stop, marking that it lives."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        stop = folder / f"{self.request.id}.stop"
        with marks.around(self, key):
            ends_at = None
            while ends_at is None or time.monotonic() < ends_at:
                marks.write(what="alive", id=self.request.id, key=key)
                if ends_at is None and stop.exists():
                    ends_at = time.monotonic() + seconds
                time.sleep(POLL_SECONDS)
            os._exit(1)

    @app.task(name="shop.ticking", **options, concurrency_limit=1)
    def ticking(self: Any, key: str, until: str) -> None:
        """Marks that it lives, until the file is there."""
        with marks.around(self, key):
            while not any((folder / name).exists() for name in (until, CLOSING)):
                marks.write(what="alive", id=self.request.id, key=key)
                time.sleep(POLL_SECONDS)

    @app.task(name="shop.lingering", **options, concurrency_limit=1)
    def lingering(self: Any, key: str, seconds: float) -> None:
        """Waits to be stopped, and goes on for so many seconds then, marking that it lives."""
        with marks.around(self, key):
            try:
                _wait_for(folder, CLOSING)
            finally:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    marks.write(what="alive", id=self.request.id, key=key)
                    time.sleep(POLL_SECONDS)

    @app.task(name="shop.rated", **options, concurrency_limit=2, rate_limit="10/s")
    def rated(self: Any, key: str) -> None:
        with marks.around(self, key):
            return

    @app.task(name="shop.second_run", max_retries=5, default_retry_delay=0, concurrency_limit=1, **options)
    def second_run(self: Any, key: str, how: str) -> str:
        """Two runs may overlap (C4): each ends when a file of its own number is there; the first one by ``how``."""
        first = folder / f"{self.request.id}.first"
        number = 2 if first.exists() else 1
        first.touch()
        with marks.around(self, key, number=number):
            _wait_for(folder, f"{self.request.id}.end{number}")
            if number == 1 and how == "raise":
                raise ValueError("too late")
            if number == 1 and how == "retry":
                raise self.retry()
            return f"run {number}"


def _declare_left(app: Celery, marks: Marks, folder: Path) -> None:
    @app.task(name="shop.left", bind=True, shared=False, concurrency_key="{key}", concurrency_limit=1)
    def left(self: Any, key: str, until: str | None = None) -> None:
        with marks.around(self, key):
            _wait_for(folder, until)


def _declare_right(app: Celery, marks: Marks, folder: Path) -> None:
    @app.task(name="shop.right", bind=True, shared=False, concurrency_key="{key}", concurrency_limit=1)
    def right(self: Any, key: str, until: str | None = None) -> None:
        with marks.around(self, key):
            _wait_for(folder, until)


PARTS: dict[str, Callable[[Celery, Marks, Path], None]] = {
    "goods": _declare_goods,
    "left": _declare_left,
    "right": _declare_right,
}

ERRORS: dict[str, type[Exception]] = {
    "OSError": OSError,
    "Declined": Declined,
    "CardExpired": CardExpired,
    "NonRetryableError": NonRetryableError,
}


def _succeed(_: Path) -> str:
    return "done"


def _ignore(_: Path) -> None:
    raise Ignore


def _raise(_: Path) -> None:
    raise ValueError("wrong")


def _raise_unpicklable(_: Path) -> None:
    raise Unpicklable("wrong")


def _raise_unpicklable_for_good(_: Path) -> None:
    raise UnpicklableForGood("wrong")


def _raise_non_retryable(_: Path) -> None:
    raise NonRetryableError("never")


def _reject(_: Path) -> None:
    raise Reject("no", requeue=False)


def _reject_once(before: Path) -> str:
    if _first(before):
        raise Reject("later", requeue=True)
    return "done"


def _sleep(_: Path) -> None:
    time.sleep(60)


def _exit(_: Path) -> None:
    sys.exit(3)


def _interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def _run_out_of_memory(_: Path) -> None:
    raise MemoryError("full")


def _raise_retry(_: Path) -> None:
    raise Retry("by hand")


def _die(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _die_once(before: Path) -> str:
    if _first(before):
        _die(before)
    return "done"


def _first(before: Path) -> bool:
    if before.exists():
        return False
    before.touch()
    return True


ENDS: dict[str, Callable[[Path], Any]] = {
    "succeed": _succeed,
    "ignore": _ignore,
    "raise": _raise,
    "raise_unpicklable": _raise_unpicklable,
    "raise_unpicklable_for_good": _raise_unpicklable_for_good,
    "raise_non_retryable": _raise_non_retryable,
    "reject": _reject,
    "reject_once": _reject_once,
    "sleep": _sleep,
    "exit": _exit,
    "interrupt": _interrupt,
    "run_out_of_memory": _run_out_of_memory,
    "raise_retry": _raise_retry,
    "die": _die,
    "die_once": _die_once,
}
