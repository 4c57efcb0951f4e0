"""The figures of a run, as ``--json`` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Dead letters that died alike; ``message`` is that of the newest."""

    exception_type: str
    message: str
    letters: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out of a run.

    ``running_max`` is the largest number of files of one package ever seen running at one moment, by the tasks' own
    marks; ``packages_at_limit`` says how many packages reached their limit. ``seconds`` goes from the first task sent
    to the end of the last. ``runs`` counts retries too; ``interrupted`` are runs whose process died in them.
    ``counted`` adds up what was counted in the files that are done.
    """

    files: int
    done: int
    dead: int
    running_max: int
    seconds: float
    tasks_per_second: float
    limit: int
    workers: int
    concurrency: int
    packages: int
    packages_at_limit: int
    runs: int
    interrupted: int
    publish_seconds: float
    check_seconds: float
    counted: Mapping[str, int]
    groups: Sequence[LetterGroup]
    problems: Sequence[str]
