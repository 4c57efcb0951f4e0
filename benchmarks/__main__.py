"""``make bench``: each comparison's two sides run in turn; the figure is the median of the pairs' ratios.

Speed here is a ratio measured in one run: the machine's own speed drifts, the two sides drift together.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import click

from celery_backfill import embedded

from .measure import Side, tasks_per_second


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside plain Celery; ``at_least`` is the ratio that we mean to keep."""

    name: str
    ours: Side
    plain: Side
    tasks: int
    at_least: float


COMPARISONS = (
    Comparison("no-op, distinct keys", Side("leased_noop", 2), Side("plain_noop", 2), 4000, 0.80),
    Comparison("hot key of limit 1, 5 ms", Side("leased_5ms", 2), Side("plain_5ms", 1), 1000, 0.95),
)


def compare(comparison: Comparison, runs: int, redis_url: str) -> dict[str, Any]:
    """Run both sides in turn, ``runs`` times."""
    pairs = []
    for number in range(runs):
        plain = tasks_per_second(comparison.plain, comparison.tasks, redis_url)
        ours = tasks_per_second(comparison.ours, comparison.tasks, redis_url)
        pairs.append((ours, plain))
        _say(f"{comparison.name}: run {number + 1} of {runs}: {ours:.0f}/s beside {plain:.0f}/s = {ours / plain:.2f}")
    ratios = [ours / plain for ours, plain in pairs]
    return {
        "comparison": comparison.name,
        "ours_per_second": round(statistics.median(ours for ours, _ in pairs), 1),
        "plain_per_second": round(statistics.median(plain for _, plain in pairs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "runs": runs,
        "at_least": comparison.at_least,
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results for people."""
    head = f"{'comparison':<26} {'ours/s':>8} {'plain/s':>8} {'ratio':>6} {'min-max':>11} {'wanted':>6}"
    rows = [
        f"{r['comparison']:<26} {r['ours_per_second']:>8.0f} {r['plain_per_second']:>8.0f} {r['ratio']:>6.2f} "
        f"{r['ratio_min']:>5.2f}-{r['ratio_max']:<5.2f} {r['at_least']:>6.2f}"
        for r in results
    ]
    return "\n".join([head, *rows])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@click.command()
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Pairs of runs a comparison.")
@click.option("--only", default="", help="Only the comparisons whose name has this text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
def main(runs: int, only: str, as_json: bool) -> None:
    """Compare with plain Celery on this machine."""
    redis_url = embedded.redis_url()
    results = [compare(each, runs, redis_url) for each in COMPARISONS if only in each.name]
    print(json.dumps(results, indent=2) if as_json else table(results))


if __name__ == "__main__":
    main()
