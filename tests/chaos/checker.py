"""Judges a history: never more than N at once, tokens that grow, and one end for each task. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .history import Run


@dataclass(frozen=True, slots=True)
class Overlap:
    """More runs of a key at once than its limit allows, from ``at`` to ``until``."""

    key: str
    limit: int
    at: float
    until: float
    runs: tuple[Run, ...]

    @property
    def most(self) -> int:
        return len(self.runs)


@dataclass(frozen=True, slots=True)
class TokenBack:
    """A run that started after another with a token that is not higher: of the same task, or of a key of limit 1."""

    earlier: Run
    later: Run


@dataclass(frozen=True, slots=True)
class Ends:
    """How often a task ended for good: runs settled as done and as dead, and failures recorded in PostgreSQL.

    A run is named by its token, so one that was settled again after a loss of data counts once.
    """

    successes: int = 0
    deaths: int = 0
    recorded: int = 0
    reasons: tuple[str, ...] = ()


def overlaps(runs: Iterable[Run]) -> list[Overlap]:
    """Where more runs of a key than its limit left marks in the same time. Runs without a limit (0) do not count."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.limit:
            by_key[run.key].append(run)
    return [found for of_key in by_key.values() for found in _overlaps_of_key(of_key)]


def _overlaps_of_key(runs: Sequence[Run]) -> Iterator[Overlap]:
    """Sweep over the ends of all spans. Of two at the same instant, the one that ends comes first."""
    # A span of one mark takes no time: it is the step that was under way when its process was frozen.
    spans = [(began, ended, run) for run in runs for began, ended in run.spans if ended > began]
    steps = [(ended, 0, run) for _, ended, run in spans] + [(began, 1, run) for began, _, run in spans]
    now: list[Run] = []
    worst: tuple[Run, ...] = ()
    since = 0.0
    for at, starts, run in sorted(steps, key=lambda step: step[:2]):
        now.append(run) if starts else now.remove(run)
        limit = min((one.limit for one in now), default=run.limit)
        if len(now) > limit:
            since = since if worst else at
            worst = max(worst, tuple(now), key=len)
        elif worst:
            yield Overlap(run.key, limit, since, at, worst)
            worst = ()


def late_marks(runs: Iterable[Run]) -> int:
    """How many single marks came after a gap: the one step that a frozen process had under way."""
    return sum(began == ended for run in runs for began, ended in run.spans[1:])


def tokens_back(runs: Iterable[Run]) -> list[TokenBack]:
    """Where a token did not grow: from run to run of one task, and from run to run of a key of limit 1."""
    lines: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.started):
        lines["task", run.task_id].append(run)
        if run.limit == 1:
            lines["key", run.key].append(run)
    pairs = ((before, after) for line in lines.values() for before, after in pairwise(line))
    found = [TokenBack(before, after) for before, after in pairs if after.token <= before.token]
    return list({(id(one.earlier), id(one.later)): one for one in found}.values())


@dataclass(frozen=True, slots=True)
class Wrong:
    """A task that did not end as it should: ``lost``, ``doubled``, or ``wrong`` (not in the way it was told to)."""

    what: str
    task_id: str
    detail: str


def wrong_ends(expected: Mapping[str, bool], ends: Mapping[str, Ends], unsure: Collection[str] = ()) -> list[Wrong]:
    """Tasks without exactly one end. ``expected`` tells whether a task is to succeed.

    Of tasks in ``unsure`` nobody knows whether they were ever sent: those may be missing.
    """
    found = []
    for task_id, succeeds in expected.items():
        of_task = ends.get(task_id, Ends())
        verdict = _verdict(succeeds, of_task)
        if verdict and not (verdict == "lost" and task_id in unsure):
            found.append(Wrong(verdict, task_id, str(of_task)))
    return found


def _verdict(succeeds: bool, ends: Ends) -> str | None:
    if ends.successes + max(ends.deaths, ends.recorded) > 1:
        return "doubled"
    if not ends.successes and not ends.recorded:
        return "lost"
    # A task that lost more workers than it may is poison, whatever it would have come to.
    if succeeds != bool(ends.successes) and ends.reasons != ("poison",):
        return "wrong"
    return None
