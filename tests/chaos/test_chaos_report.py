"""The table of a chaos run counts what was found, and a run with any violation has not held."""

from __future__ import annotations

import json

import pytest

from tests.chaos.judge import (
    BY_KOMBU,
    LATE,
    LOOSE,
    NO_FAULT,
    SUICIDE,
    VIOLATIONS,
    WITH_DATA,
    Finding,
    Injected,
    Outcome,
)
from tests.chaos.reclaim import BY_LEASE, Reclaims
from tests.chaos.report import Report, markdown

KILL = "kill worker"


def report(*findings: Finding, reclaims: tuple[Reclaims, ...] = ()) -> Report:
    """Of one world in which a worker was killed twice."""
    injected = [Injected(KILL, 1.0, 2.0), Injected(KILL, 3.0, 4.0)]
    seconds = {KILL: [1.0, 2.0, 6.0]}
    outcome = Outcome("redis-same/prefork", 1, injected, 10, 12, 3, list(findings), seconds)
    return Report(1, 10.0, [outcome], reclaims, [])


def found(what: str, fault: str = KILL) -> Finding:
    return Finding(what, fault, "redis-same/prefork", "text")


def test_a_run_without_violations_holds() -> None:
    all_well = report(found(WITH_DATA), found(BY_KOMBU), found(LOOSE), found(LATE))
    assert all_well.held
    kill, suicide, total = all_well.rows()
    assert (kill["fault"], kill["times"], kill["with_data"], kill["by_kombu"]) == (KILL, 2, 1, 1)
    assert (kill["median"], kill["maximum"]) == (2.0, 6.0)
    assert (suicide["fault"], suicide["times"], suicide["median"]) == (SUICIDE, 3, None)
    assert (total["times"], total["overlaps"], total["lost"], total["doubled"], total["other"]) == (5, 0, 0, 0, 0)


@pytest.mark.parametrize("what", VIOLATIONS)
def test_every_violation_is_counted_and_fails_the_run(what: str) -> None:
    bad = report(found(what), found(what, NO_FAULT))
    assert not bad.held
    rows = {row["fault"]: row for row in bad.rows()}
    counted = ("overlaps", "lost", "doubled", "other")
    assert [sum(rows[fault][name] for name in counted) for fault in (KILL, NO_FAULT, "all")] == [1, 1, 2]
    assert len(bad.to_json()["violations"]) == 2


@pytest.mark.parametrize(
    ("seconds", "held"), [((15.9,), True), ((15.9, 16.1), False), ((float("inf"),), False), ((), False)]
)
def test_a_reclaim_that_takes_too_long_or_was_not_seen_fails_the_run(seconds: tuple[float, ...], held: bool) -> None:
    assert report(reclaims=(Reclaims(BY_LEASE, "redis-same/prefork", seconds, ()),)).held is held


def test_it_is_written_as_json_and_as_markdown() -> None:
    whole = report(found("lost"), reclaims=(Reclaims(BY_LEASE, "redis-same/prefork", (1.0, 3.0), ()),))
    assert json.loads(json.dumps(whole.to_json()))["faults"][0]["lost"] == 1
    assert f"| {KILL} | 2 | 0 | 1 | 0 | 0 | 0 | 0 | 2.00 s | 6.00 s |" in markdown(whole)
    assert f"| {BY_LEASE.name} | redis-same/prefork | 2 | 2.00 s | 3.00 s | 16.00 s |" in markdown(whole)
