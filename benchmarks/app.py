"""The tasks that are compared. Each writes one byte to a file when it ends, so that counting costs next to nothing."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_backfill import BackfillTask

app = Celery("benchmarks", broker=os.environ["BENCH_REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    task_default_queue=os.environ["BENCH_QUEUE"],
    backfill_namespace=os.environ["BENCH_QUEUE"],
    backfill_postgres_url="postgresql://127.0.0.1:1/nothing-is-recorded-here",
    broker_connection_retry_on_startup=True,
)

_done = os.open(os.environ["BENCH_DONE_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(acks_late=True)
def plain_noop(number: int) -> None:
    """Nothing, under plain Celery."""
    os.write(_done, b".")


@app.task(base=BackfillTask, concurrency_key="key:{number}", concurrency_limit=1)
def leased_noop(number: int) -> None:
    """Nothing, each call under a key of its own."""
    os.write(_done, b".")


@app.task(acks_late=True)
def plain_5ms(number: int) -> None:
    """Five milliseconds, under plain Celery."""
    time.sleep(0.005)
    os.write(_done, b".")


@app.task(base=BackfillTask, concurrency_key="hot", concurrency_limit=1)
def leased_5ms(number: int) -> None:
    """Five milliseconds, all calls under one key of limit 1."""
    time.sleep(0.005)
    os.write(_done, b".")
