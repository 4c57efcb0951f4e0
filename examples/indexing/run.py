"""The demo from its first step to its figures. Importing this module starts the servers."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .app import FOLDER, MARKS, MAX_RETRIES
from .backlog import Backlog
from .corpus import SourceFile, collect, standard_roots
from .errors import DemoFailedError
from .figures import Figures
from .follow import Follower, wait_until_ready
from .letters import DemoLetters
from .marks import MarksReader
from .options import Options
from .outcome import Outcome
from .publisher import Publisher
from .verdict import Expected, expectations
from .view import View
from .workers import Worker, Workers


def run(options: Options, view: View) -> Figures:
    """Index, check, and answer the figures, problems among them. Raises ``DemoFailedError`` when that is impossible."""
    with _alone():
        letters = _prepare(view)
        files = _collect(options, view)
        outcome = _index(files, letters, options, view)
        began = time.monotonic()
        expected = _check(files, view)
        return outcome.figures(expected, options, check_seconds=time.monotonic() - began)


def _prepare(view: View) -> DemoLetters:
    view.phase("Preparing the database and the store")
    letters = DemoLetters()
    letters.migrate()
    letters.put_aside()
    Backlog().clear()
    return letters


def _collect(options: Options, view: View) -> list[SourceFile]:
    view.phase("Looking for Python source files")
    files = collect(options.paths or standard_roots(), run=uuid.uuid4(), at_most=options.max_files)
    if not files:
        raise DemoFailedError("there is no Python source file to index")
    return files


def _index(files: Sequence[SourceFile], letters: DemoLetters, options: Options, view: View) -> Outcome:
    MARKS.write_bytes(b"")
    marks = MarksReader(MARKS, (file.task_id for file in files))
    workers = Workers(
        [Worker(number, concurrency=options.concurrency, folder=FOLDER) for number in range(1, options.workers + 1)]
    )
    view.phase(f"Starting {_workers(options)}")
    with workers:
        wait_until_ready(workers, marks)
        packages = len({file.package for file in files})
        view.phase(
            f"Indexing {len(files):,} files of {packages:,} packages, {options.limit} of a package at a time at most"
        )
        began = time.monotonic_ns()
        try:
            with Publisher(files) as publisher:
                stalled = Follower(files, publisher=publisher, marks=marks, letters=letters).follow(view, workers)
        except KeyboardInterrupt:
            view.broken_off("Interrupted; stopping the workers (once more: killing them)")
            raise
        view.phase("Stopping the workers")
        killed = workers.stop()
    marks.read()
    return Outcome(files, marks.runs(), letters, began, publisher.seconds, stalled, killed)


def _check(files: Sequence[SourceFile], view: View) -> dict[str, Expected]:
    view.phase("Checking: parsing all files again, without Celery")
    return expectations(
        files,
        max_retries=MAX_RETRIES,
        processes=os.cpu_count() or 1,
        checked=lambda number: view.checking(number, len(files)),
    )


def _workers(options: Options) -> str:
    workers = "a Celery worker" if options.workers == 1 else f"{options.workers} Celery workers"
    return f"{workers} with {options.concurrency} processes{'' if options.workers == 1 else ' each'}"


@contextmanager
def _alone() -> Iterator[None]:
    """Hold this folder's demo. Raises ``DemoFailedError`` when another one runs."""
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailedError(f"another demo runs in {FOLDER}; wait for its end") from None
        yield
