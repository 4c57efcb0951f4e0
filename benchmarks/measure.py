"""One run: fill a queue, start a real worker, and time how fast it empties it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import redis

WARM_UP_SHARE = 0.1
POLL_SECONDS = 0.002
TIMEOUT_SECONDS = 180.0
FILL = """
import sys
from benchmarks.app import app
task = app.tasks["benchmarks.app." + sys.argv[1]]
with app.producer_pool.acquire(block=True) as producer:
    for number in range(int(sys.argv[2])):
        task.apply_async((number,), producer=producer)
"""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: a task of ``benchmarks.app`` and the worker's number of processes."""

    task: str
    processes: int


def tasks_per_second(side: Side, tasks: int, redis_url: str) -> float:
    """How many tasks a second one worker runs, the first tenth left out. Raises ``TimeoutError``."""
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        queue = f"bench-{uuid4().hex[:8]}"
        environment = {
            **os.environ,
            "BENCH_REDIS_URL": redis_url,
            "BENCH_QUEUE": queue,
            "BENCH_DONE_FILE": str(done),
        }
        subprocess.run([sys.executable, "-c", FILL, side.task, str(tasks)], env=environment, check=True)
        worker = _start_worker(side, environment, Path(folder) / "worker.log")
        try:
            return _time(done, tasks)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(timeout=60)
            _clean(redis_url, queue)


def _start_worker(side: Side, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "--loglevel=WARNING"]
    command += [f"--concurrency={side.processes}", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def _time(done: Path, tasks: int) -> float:
    warm = int(tasks * WARM_UP_SHARE)
    first = _wait(done, warm)
    counted_from = done.stat().st_size
    last = _wait(done, tasks)
    return (tasks - counted_from) / (last - first)


def _wait(done: Path, count: int) -> float:
    """The moment at which that many were done."""
    until = time.monotonic() + TIMEOUT_SECONDS
    while not done.exists() or done.stat().st_size < count:
        if time.monotonic() > until:
            raise TimeoutError(f"{count} tasks were not done in {TIMEOUT_SECONDS:g} seconds")
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def _clean(redis_url: str, queue: str) -> None:
    client = redis.Redis.from_url(redis_url)
    for pattern in (f"{queue}*", f"{{{queue}}}*", f"_kombu.binding.{queue}"):
        for key in client.scan_iter(pattern, count=1000):
            client.delete(key)
