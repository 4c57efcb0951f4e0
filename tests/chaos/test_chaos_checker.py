"""The checker of the chaos runs finds what is wrong in histories made by hand, and nothing where all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.checker import Ends, late_marks, overlaps, tokens_back, wrong_ends
from tests.chaos.history import GAP_SECONDS, History, Run

Span = tuple[float, float]


def run(*spans: Span, task: str = "t", key: str = "k", limit: int = 1, token: int = 1) -> Run:
    """A run with marks in these spans."""
    return Run(
        task_id=task, task="chaos.any", key=key, limit=limit, strict=True, attempt=f"{task}@q", token=token,
        retries=0, worker="w1", pid=1, spans=list(spans),
    )  # fmt: skip


def marked(*marks: float, **about: object) -> Run:
    """A run with marks at these times."""
    first, *rest = marks
    made = run((first, first), **about)  # type: ignore[arg-type]
    for at in rest:
        made.marked(at)
    return made


# Never more than N at once.


def test_one_after_the_other_is_no_overlap() -> None:
    assert overlaps([run((0, 1)), run((1, 2)), run((2.5, 3))]) == []


def test_two_at_once_under_a_limit_of_one_are_an_overlap() -> None:
    (found,) = overlaps([run((0, 2), task="a"), run((1, 3), task="b")])
    assert (found.key, found.limit, found.most, found.at, found.until) == ("k", 1, 2, 1, 2)
    assert {one.task_id for one in found.runs} == {"a", "b"}


def test_two_runs_of_one_task_at_once_are_an_overlap() -> None:
    assert len(overlaps([run((0, 2), token=1), run((1, 3), token=2)])) == 1


@pytest.mark.parametrize(("limit", "expected"), [(2, 1), (3, 0), (0, 0)])
def test_three_at_once(limit: int, expected: int) -> None:
    """Too many for two, not for three, and not where there is no limit."""
    assert len(overlaps([run((0, 3), limit=limit), run((1, 3), limit=limit), run((2, 3), limit=limit)])) == expected


def test_other_keys_do_not_count() -> None:
    assert overlaps([run((0, 2), key="a"), run((0, 2), key="b")]) == []


def test_each_overlap_is_found_with_its_largest_number() -> None:
    found = overlaps([run((0, 10)), run((1, 2)), run((4, 6)), run((5, 7))])
    assert [(one.at, one.until, one.most) for one in found] == [(1, 2, 2), (4, 7, 3)]


def test_a_run_that_was_cut_off_counts_to_its_last_mark() -> None:
    assert overlaps([marked(0.0, 0.1, 0.2), marked(0.3, 0.4)]) == []
    assert len(overlaps([marked(0.0, 0.1, 0.2), marked(0.1, 0.3)])) == 1


def test_a_frozen_run_does_not_count_while_it_is_frozen() -> None:
    frozen = marked(0.0, 0.1, 5.0, 5.1)
    assert frozen.spans == [(0.0, 0.1), (5.0, 5.1)]
    assert overlaps([frozen, marked(1.0, 1.3, 1.6)]) == []


def test_a_frozen_run_that_goes_on_overlaps() -> None:
    frozen, other = marked(0.0, 0.1, 5.0, 5.02), marked(4.9, 5.3)
    (found,) = overlaps([frozen, other])
    assert (found.at, found.until) == (5.0, 5.02)


def test_one_mark_after_a_freeze_is_a_late_mark_and_no_overlap() -> None:
    """It was under way when the process was frozen, and nothing that asks before it acts can take it back."""
    frozen, other = marked(0.0, 0.1, 5.0), marked(4.9, 5.3)
    assert overlaps([frozen, other]) == []
    assert late_marks([frozen, other]) == 1


def test_a_pause_shorter_than_a_freeze_counts() -> None:
    slow = marked(0.0, GAP_SECONDS - 0.01)
    assert len(overlaps([slow, marked(0.1, 0.2)])) == 1


# Tokens grow.


def test_tokens_that_grow_are_fine() -> None:
    assert tokens_back([run((0, 1), token=1), run((2, 3), token=5), run((4, 5), task="b", token=6)]) == []


def test_a_tasks_token_that_goes_back_is_found() -> None:
    (found,) = tokens_back([run((0, 1), token=5, limit=3), run((2, 3), token=4, limit=3)])
    assert (found.earlier.token, found.later.token) == (5, 4)


def test_a_token_used_twice_is_found() -> None:
    assert len(tokens_back([run((0, 1), token=5), run((2, 3), token=5)])) == 1


def test_a_keys_token_that_goes_back_is_found_where_one_runs_after_the_other() -> None:
    assert len(tokens_back([run((0, 1), task="a", token=5), run((2, 3), task="b", token=4)])) == 1
    assert tokens_back([run((0, 1), task="a", token=5, limit=2), run((2, 3), task="b", token=4, limit=2)]) == []


# Each task ends once.


@pytest.mark.parametrize(
    ("succeeds", "ends", "expected"),
    [
        (True, Ends(successes=1), None),
        (False, Ends(deaths=1, recorded=1, reasons=("non_retryable",)), None),
        (True, Ends(deaths=1, recorded=1, reasons=("poison",)), None),
        (True, Ends(), "lost"),
        (False, Ends(), "lost"),
        (False, Ends(deaths=1), "lost"),
        (True, Ends(successes=2), "doubled"),
        (True, Ends(successes=1, deaths=1, recorded=1), "doubled"),
        (True, Ends(successes=1, recorded=1), "doubled"),
        (False, Ends(deaths=2, recorded=1), "doubled"),
        (False, Ends(deaths=1, recorded=2), "doubled"),
        (True, Ends(deaths=1, recorded=1, reasons=("internal",)), "wrong"),
        (False, Ends(successes=1), "wrong"),
    ],
)
def test_the_end_of_a_task(succeeds: bool, ends: Ends, expected: str | None) -> None:
    assert [one.what for one in wrong_ends({"t": succeeds}, {"t": ends})] == ([expected] if expected else [])


def test_a_task_that_nobody_ever_heard_of_is_lost_unless_it_may_never_have_been_sent() -> None:
    assert [one.what for one in wrong_ends({"t": True}, {})] == ["lost"]
    assert wrong_ends({"t": True}, {}, unsure={"t"}) == []
    assert [one.what for one in wrong_ends({"t": True}, {"t": Ends(successes=2)}, unsure={"t"})] == ["doubled"]


# Marks become runs.


def test_marks_become_runs(tmp_path: Path) -> None:
    history = History(tmp_path / "marks")
    start = {"mark": "start", "id": "t", "task": "x", "key": "k", "limit": 1, "strict": True, "attempt": "a"}
    start |= {"token": 7, "retries": 0, "worker": "w", "pid": 3}
    marks: list[dict[str, object]] = [
        {**start, "run": "1", "at": 1.0},
        {"mark": "tick", "run": "1", "at": 1.1},
        {"mark": "end", "run": "1", "at": 1.2, "how": "ok", "stopped": False},
        {**start, "run": "2", "at": 2.0},
        {"mark": "tick", "run": "2", "at": 2.1},
        {"mark": "end", "run": "2", "at": 2.2, "how": "LeaseLostError", "stopped": True},
        {**start, "run": "3", "at": 3.0},
    ]
    lines = "".join(json.dumps(mark) + "\n" for mark in marks)
    history.path.write_text(lines[:-10])
    assert [one.how for one in history.read().runs] == ["ok", "LeaseLostError"]
    history.path.write_text(lines)
    first, stopped, cut_off = history.read().runs
    assert (first.spans, first.how, first.token) == ([(1.0, 1.2)], "ok", 7)
    # That it was stopped is no effect of it.
    assert (stopped.spans, stopped.how) == ([(2.0, 2.1)], "LeaseLostError")
    assert (cut_off.spans, cut_off.how) == ([(3.0, 3.0)], None)
    assert history.running() == [cut_off]
    assert history.ended == {"t"}
