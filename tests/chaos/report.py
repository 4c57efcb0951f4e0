"""What a chaos run found, as a table, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tests.chaos.faults import FAULTS
from tests.chaos.judge import BY_KOMBU, LATE, LOOSE, NO_FAULT, SUICIDE, WITH_DATA, Finding, Outcome
from tests.chaos.reclaim import Reclaims

#: Fields of a row, with what stands over them.
COLUMNS = {
    "fault": "fault",
    "times": "times",
    "overlaps": "over-\nlaps",
    "lost": "lost",
    "doubled": "doubled",
    "other": "other",
    "with_data": "by lost\ndata",
    "by_kombu": "never\ndelivered\nby kombu",
    "median": "reclaim\nmedian",
    "maximum": "reclaim\nmaximum",
}
#: Which field counts which findings; all other violations are counted as "other".
COUNTED = {"overlap": "overlaps", "lost": "lost", "doubled": "doubled", WITH_DATA: "with_data", BY_KOMBU: "by_kombu"}
RECLAIM_COLUMNS = ("at default settings", "world", "runs", "median", "maximum", "bound")


@dataclass(frozen=True, slots=True)
class Report:
    """All of one run."""

    seed: int
    minutes: float
    outcomes: Sequence[Outcome]
    reclaims: Sequence[Reclaims]
    skipped: Sequence[str]

    @property
    def violations(self) -> list[Finding]:
        """All, in every world. A reclaim that took too long is not among them."""
        return [one for outcome in self.outcomes for one in outcome.violations] + [
            one for reclaims in self.reclaims for one in reclaims.findings
        ]

    @property
    def held(self) -> bool:
        """Whether nothing is wrong."""
        return not self.violations and all(reclaims.held for reclaims in self.reclaims)

    def rows(self) -> list[dict[str, Any]]:
        """One row a fault, and one for all."""
        names = [*FAULTS, SUICIDE, NO_FAULT]
        rows = [row for name in names if (row := self._row(name))["times"] or any(row[name] for name in _COUNTS)]
        total = {"fault": "all", "times": sum(row["times"] for row in rows)}
        total |= {name: sum(row[name] for row in rows) for name in _COUNTS}
        return [*rows, total | _times([second for one in self._seconds() for second in one[1]])]

    def _row(self, fault: str) -> dict[str, Any]:
        findings = [one for outcome in self.outcomes for one in outcome.findings if one.fault == fault]
        times = sum(one.fault == fault for outcome in self.outcomes for one in outcome.injected)
        if fault == SUICIDE:
            times = sum(outcome.suicides for outcome in self.outcomes)
        row: dict[str, Any] = {"fault": fault, "times": times, **dict.fromkeys(_COUNTS, 0)}
        for one in findings:
            if one.what not in (LOOSE, LATE):
                row[COUNTED.get(one.what, "other")] += 1
        return row | _times([second for name, seconds in self._seconds() if name == fault for second in seconds])

    def _seconds(self) -> Iterator[tuple[str, list[float]]]:
        return ((fault, seconds) for outcome in self.outcomes for fault, seconds in outcome.reclaims.items())

    def count(self, what: str) -> int:
        """How many findings of a kind there are."""
        return sum(one.what == what for outcome in self.outcomes for one in outcome.findings)

    def summary(self) -> str:
        """In a line: how much happened, and what is counted beside the table."""
        sent, runs = (sum(getattr(outcome, name) for outcome in self.outcomes) for name in ("sent", "runs"))
        return (
            f"{len(self.outcomes)} worlds, {sent} tasks, {runs} runs, seed {self.seed}. Without strict: "
            f"{self.count(LOOSE)} overlaps. Single marks of frozen processes after they went on: {self.count(LATE)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "held": self.held,
            "faults": self.rows(),
            "worlds": [
                {"world": one.world, "tasks": one.sent, "runs": one.runs, "violations": len(one.violations)}
                for one in self.outcomes
            ],
            "reclaims": [dict(zip(_RECLAIM_FIELDS, _reclaim_row(one), strict=True)) for one in self.reclaims],
            "overlaps_without_strict": self.count(LOOSE),
            "late_marks": self.count(LATE),
            "violations": [{"what": one.what, "fault": one.fault, "world": one.world, "text": one.text}
                           for one in self.violations],
            "skipped": list(self.skipped),
        }  # fmt: skip


_COUNTS = ("overlaps", "lost", "doubled", "other", "with_data", "by_kombu")
_RECLAIM_FIELDS = ("case", "world", "runs", "median", "maximum", "bound")


def _times(seconds: Sequence[float]) -> dict[str, float | None]:
    known = bool(seconds)
    return {
        "median": round(median(seconds), 2) if known else None,
        "maximum": round(max(seconds), 2) if known else None,
    }


def _reclaim_row(one: Reclaims) -> tuple[Any, ...]:
    times = _times(one.seconds)
    return (one.case.name, one.world, len(one.seconds), *times.values(), one.case.bound)


def tables(report: Report) -> Iterator[Table]:
    """For a terminal."""
    faults = Table(*COLUMNS.values(), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    faults.columns[0].no_wrap = True
    for row in report.rows():
        wrong = any(row[name] for name in _COUNTS[:4])
        faults.add_row(*_texts(row.values()), style="red" if wrong else "bold" if row["fault"] == "all" else None)
    yield faults
    if report.reclaims:
        reclaims = Table(*RECLAIM_COLUMNS, box=SIMPLE_HEAD)
        for one in report.reclaims:
            reclaims.add_row(*_texts(_reclaim_row(one)), style=None if one.held else "red")
        yield reclaims


def markdown(report: Report) -> str:
    """For the documentation."""
    columns = [text.replace("-\n", "").replace("\n", " ") for text in COLUMNS.values()]
    parts = [_markdown(columns, [_texts(row.values()) for row in report.rows()])]
    if report.reclaims:
        parts.append(_markdown(RECLAIM_COLUMNS, [_texts(_reclaim_row(one)) for one in report.reclaims]))
    return "\n\n".join([*parts, report.summary()])


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _texts(values: Any) -> list[str]:
    return ["" if value is None else f"{value:.2f} s" if isinstance(value, float) else str(value) for value in values]
