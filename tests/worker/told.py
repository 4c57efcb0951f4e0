"""Tasks that go on and on, and say what they are told of their leases."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

from celery_backfill import LeaseLostError
from tests.worker import shop
from tests.worker.marks import Marks

TICK_SECONDS = 0.02


def _declare(app: Celery, marks: Marks, folder: Path) -> None:
    options: dict[str, Any] = {"bind": True, "shared": False, "concurrency_key": "{key}", "concurrency_limit": 1}

    def loop(self: Any, key: str, how: str = "loop") -> str:
        """Ticks until a file named by its key is there. Waits and bears with being told as ``how`` says."""
        first = not (folder / f"{self.request.id}.first").exists()
        (folder / f"{self.request.id}.first").touch()
        with marks.around(self, key):
            _go_on(self, key, how if first else "loop")
        return "first" if first else "second"

    def _go_on(self: Any, key: str, how: str) -> None:
        while not (folder / key).exists() and not (folder / shop.CLOSING).exists():
            try:
                marks.write(what="tick", id=self.request.id, key=key, token=self.lease.token)
                if how == "check":
                    self.lease.check()
                time.sleep(60 if how == "sleep" else TICK_SECONDS)
            except LeaseLostError as error:
                marks.write(what="told", id=self.request.id, key=key, lost=self.lease.lost, error=str(error))
                if how != "deaf":
                    raise

    # A lost lease is no reason to retry, whatever the task is retried for.
    retried = {**options, "autoretry_for": (Exception,), "max_retries": 3}
    app.task(name="told.loop", **retried)(loop)
    app.task(name="told.strict", strict=True, **retried)(loop)
    app.task(name="told.kill", on_lease_lost="kill", **retried)(loop)

    @app.task(name="told.look", **options)
    def look(self: Any, key: str) -> dict[str, Any]:
        self.lease.check()
        return {"token": self.lease.token, "lost": self.lease.lost, "remaining": self.lease.remaining}

    @app.task(name="told.hold", **options)
    def hold(self: Any, key: str, seconds: float) -> None:
        """Holds the interpreter's lock in C, so that no other thread of its process runs."""
        with marks.around(self, key):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pow(3, 2_000_003 << 4)

    @app.task(name="told.linked", **options)
    def linked(self: Any, value: Any, key: str) -> None:
        with marks.around(self, key, value=value):
            return

    def die_after(sender: Any, **_: Any) -> None:
        if (folder / f"{sender.request.id}.die").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    @app.task(name="told.last_words", max_stalls=3, **options)
    def last_words(self: Any, key: str, fails: bool) -> str:
        """Its process dies when Celery has stored how it ended."""
        with marks.around(self, key):
            (folder / f"{self.request.id}.die").touch()
            if fails:
                raise ValueError("final")
            return "done"

    from celery import signals

    signals.task_postrun.connect(die_after, sender=last_words, weak=False)

    @app.task(name="told.poison", bind=True, shared=False, max_stalls=2)
    def poison(self: Any, key: str) -> None:
        """Takes its whole worker with it."""
        with marks.around(self, key):
            time.sleep(0.1)
            os.killpg(os.getpgid(0), signal.SIGKILL)

    @app.task(name="told.innocent", bind=True, shared=False, max_stalls=2)
    def innocent(self: Any, key: str, seconds: float) -> None:
        with marks.around(self, key):
            time.sleep(seconds)


shop.PARTS["told"] = _declare
