"""The Celery app of the demo: one task, at most ``INDEXING_LIMIT`` of it at a time per package."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from celery_backfill import BackfillTask, embedded

from . import source
from .marks import MarksFile

FOLDER = Path(".backfill", "indexing").absolute()
MARKS = FOLDER / "marks.jsonl"
QUEUE = NAMESPACE = "indexing-demo"
LIMIT = int(os.environ.get("INDEXING_LIMIT", "2"))
MAX_RETRIES = 3
LEAVE_WITH_PARENT = "INDEXING_LEAVE_WITH_PARENT"

app = Celery("indexing", broker=embedded.redis_url())
app.conf.update(
    backfill_postgres_url=embedded.postgres_url(),
    backfill_namespace=NAMESPACE,
    task_default_queue=QUEUE,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
FOLDER.mkdir(parents=True, exist_ok=True)
marks = MarksFile(MARKS)


@app.task(
    name="examples.indexing.index_file",
    base=BackfillTask,
    bind=True,
    concurrency_key="package:{package}",
    concurrency_limit=LIMIT,
    non_retryable_for=(SyntaxError, ValueError),
    autoretry_for=(OSError,),
    max_retries=MAX_RETRIES,
    retry_backoff=True,
    retry_backoff_max=2,
    retry_jitter=False,
)
def index_file(self: Any, package: str, path: str) -> None:
    """Count the file at ``path``. A file that does not parse fails at once; one that cannot be read is tried again."""
    token = self.lease.token if self.lease else None
    with marks.run(self.request.id, package=package, path=path, token=token) as outcome:
        outcome.counted(source.index(path))


@worker_ready.connect
def _announce(sender: Any, **_: Any) -> None:
    marks.ready(sender.hostname)
    if os.environ.get(LEAVE_WITH_PARENT):
        threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """The demo holds the other end of this worker's standard input: it ends when the demo does, even by SIGKILL."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
