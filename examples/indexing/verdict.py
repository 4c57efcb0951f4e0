"""The check after the run: this process parses every file itself and compares. It trusts no word of the library."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from celery_backfill.deadletters.letter import Letter

from . import source
from .corpus import SourceFile
from .marks import Run, most_at_once
from .source import Counts

CHUNK = 25

Parsed = tuple[Counts | None, str | None, bool]


@dataclass(frozen=True, slots=True)
class Expected:
    """What must become of a file: ``counts``, or else a dead letter with ``error`` after exactly ``runs`` runs."""

    counts: Counts | None
    error: str | None
    runs: int


def expectations(
    files: Sequence[SourceFile], *, max_retries: int, processes: int, checked: Callable[[int], None]
) -> dict[str, Expected]:
    """What must become of each file, by task id, found by parsing all again. ``checked`` is told how many are done."""
    found: dict[str, Expected] = {}
    answers = _parsed([file.path for file in files], processes)
    for file, (counts, error, tried_again) in zip(files, answers, strict=True):
        found[file.task_id] = Expected(counts, error, runs=1 + (max_retries if tried_again else 0))
        checked(len(found))
    return found


def peaks(files: Iterable[SourceFile], runs: Mapping[str, Sequence[Run]]) -> dict[str, int]:
    """The largest number of runs ever going on at one moment, by package, from the tasks' own marks."""
    by_package: dict[str, list[Run]] = defaultdict(list)
    for file in files:
        by_package[file.package].extend(runs.get(file.task_id, ()))
    return {package: most_at_once(of_package) for package, of_package in by_package.items()}


def problems(
    files: Sequence[SourceFile],
    expected: Mapping[str, Expected],
    runs: Mapping[str, Sequence[Run]],
    letters: Iterable[Letter],
) -> list[str]:
    """What went wrong with which file; empty when each was counted exactly once or is exactly one dead letter."""
    by_task: dict[str, list[Letter]] = defaultdict(list)
    for letter in letters:
        by_task[letter.task_id].append(letter)
    return [
        f"{file.path}: {wrong}"
        for file in files
        for wrong in _wrong(expected[file.task_id], runs.get(file.task_id, ()), by_task[file.task_id])
    ]


def over_limit(by_package: Mapping[str, int], limit: int) -> list[str]:
    """Which packages had more than ``limit`` files running at one moment."""
    return [
        f"package {package}: {most} ran at once, {limit} allowed"
        for package, most in by_package.items()
        if most > limit
    ]


def _parsed(paths: Sequence[str], processes: int) -> Iterator[Parsed]:
    # Spawned, not forked: this process has threads. A Ctrl-C is for this process alone, which then ends the others.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(_parse, paths, chunksize=CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _parse(path: str) -> Parsed:
    """The counts of a file, or the name of the exception and whether a task is tried again after it."""
    try:
        return source.index(path), None, False
    except OSError as exc:
        return None, type(exc).__name__, True
    except (SyntaxError, ValueError) as exc:
        return None, type(exc).__name__, False


def _wrong(expected: Expected, runs: Sequence[Run], letters: Sequence[Letter]) -> list[str]:
    ended = [run for run in runs if run.ended is not None]
    results = Counter(run.counts for run in ended if run.counts is not None)
    if expected.counts is not None:
        return [*_wrong_result(expected.counts, results), *(["counted, and a dead letter too"] if letters else [])]
    return [
        *(["does not parse or cannot be read, but was counted"] if results else []),
        *_wrong_letters(expected, letters),
        *([] if len(ended) == expected.runs else [f"ran {len(ended)} times instead of {expected.runs}"]),
    ]


def _wrong_result(counts: Counts, results: Mapping[Counts, int]) -> list[str]:
    if not results:
        return ["lost: never counted"]
    if sum(results.values()) > 1:
        return [f"counted {sum(results.values())} times"]
    return [] if counts in results else [f"counted as {next(iter(results))} instead of {counts}"]


def _wrong_letters(expected: Expected, letters: Sequence[Letter]) -> list[str]:
    if len(letters) != 1:
        return [f"{len(letters)} dead letters instead of 1"]
    error, failures = letters[0].exception_type.rpartition(".")[2], letters[0].failure_count
    return [
        *([] if error == expected.error else [f"dead of {error} instead of {expected.error}"]),
        *([] if failures == 1 else [f"its dead letter stands for {failures} failures instead of 1"]),
    ]
