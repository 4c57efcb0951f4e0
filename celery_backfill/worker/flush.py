"""Keeps what a prefork pool's processes have already been given.

When the broker's connection is lost, and at each shutdown, Celery flushes its pool: it forgets jobs that no process has
accepted, for their messages will come again. Ours will not, and a process that has been written a job runs it whether
it is forgotten or not. So those jobs are put back: their ends are heard, and only what was never written is given back
(F7).
"""

from __future__ import annotations

from typing import Any

from .request import LeasedRequest


def keep_written_jobs(pool: Any) -> None:
    """Have ``pool.flush`` forget only jobs that no process was given. For a started prefork pool; else does nothing."""
    jobs: dict[Any, Any] | None = getattr(pool._pool, "_cache", None)
    if jobs is None or not pool.flush:
        return
    forget = pool.flush

    def flush() -> None:
        written = {name: job for name, job in jobs.items() if _is_ours(job) and _is_written(job)}
        forget()
        jobs.update({name: job for name, job in written.items() if not job.ready()})

    pool.flush = flush


def _is_ours(job: Any) -> bool:
    return isinstance(getattr(getattr(job, "_callback", None), "__self__", None), LeasedRequest)


def _is_written(job: Any) -> bool:
    return bool(job._accepted or job._write_to is not None)
