"""Recording and reading dead letters on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.letter import Filter, Letter
from celery_backfill.deadletters.migrate import migrate
from celery_backfill.deadletters.record import Fact, Failure
from celery_backfill.deadletters.requeue import Requeue
from celery_backfill.deadletters.store import Letters
from celery_backfill.errors import ConfigurationError, LetterRefusedError, LettersUnavailableError
from tests.store.entries import failure, message, resolution

MINUTE = 60_000
NOON = 1_700_000_000_000


@pytest.fixture
def letters(postgres_url: str) -> Letters:
    migrate(OneConnection(postgres_url))
    return Letters.at(postgres_url)


@pytest.fixture
def requeue(letters: Letters, postgres_url: str) -> Requeue:
    return Requeue(connections=OneConnection(postgres_url), publish=lambda *_, **__: None)


def the(letters: Letters, task_id: str = "t-1") -> Letter:
    letter = letters.get(task_id)
    assert letter is not None
    return letter


def test_a_failure_becomes_a_letter_with_its_whole_message(letters: Letters) -> None:
    recorded = failure()
    assert letters.record([recorded]) == [recorded.id]
    letter = the(letters)
    assert (letter.state, letter.reason, letter.queue, letter.retries) == ("dead", "exhausted", "orders", 3)
    assert (letter.failure_count, letter.requeue_count, letter.stalls) == (1, 0, 1)
    assert letter.first_failed_at == letter.last_failed_at == datetime.fromtimestamp(NOON / 1000, UTC)
    assert letters.get(letter.id) == letter
    assert letters.message(letter.id) == message().encode().encode()


def test_failing_again_is_the_same_letter_with_the_newest_error_on_top(letters: Letters) -> None:  # D8
    letters.record([failure(at=NOON, exception_message="first")])
    letters.record([failure(at=NOON + MINUTE, exception_message="second", exception_type="KeyError", retries=0)])
    letter = the(letters)
    assert letter.failure_count == 2
    assert (letter.exception_message, letter.exception_type, letter.retries) == ("second", "KeyError", 0)
    assert (letter.last_failed_at - letter.first_failed_at).total_seconds() == 60
    assert [past.exception_message for past in letters.history("t-1")] == ["second", "first"]


@pytest.mark.parametrize("together", [True, False])
def test_the_newest_error_is_on_top_in_whichever_order_they_arrive(letters: Letters, together: bool) -> None:  # D8
    newer = failure(at=NOON + MINUTE, exception_message="newer", envelope=message(body=b"[[2], {}, {}]"))
    older = failure(at=NOON, exception_message="older", envelope=message(body=b"[[1], {}, {}]"))
    for batch in [[newer, older]] if together else [[newer], [older]]:
        letters.record(batch)
    letter = the(letters)
    assert (letter.exception_message, letter.failure_count) == ("newer", 2)
    assert letters.message(letter.id) == newer.message  # type: ignore[union-attr]
    assert (letter.last_failed_at - letter.first_failed_at).total_seconds() == 60


def test_the_same_failure_twice_is_one(letters: Letters) -> None:  # D2
    once = failure()
    assert letters.record([once, once]) == [once.id]
    assert letters.record([once]) == []
    assert the(letters).failure_count == 1
    assert len(letters.history("t-1")) == 1


def test_ids_of_two_stores_may_be_the_same(letters: Letters) -> None:
    one, other = failure("t-1"), failure("t-2")
    letters.record([one, replace(other, id=one.id)])  # type: ignore[type-var]
    assert (the(letters, "t-1").failure_count, the(letters, "t-2").failure_count) == (1, 1)


def test_a_failure_read_again_after_a_requeue_does_not_bring_the_letter_back(
    letters: Letters, requeue: Requeue
) -> None:
    """F29: only a row that is new changes its letter."""
    once = failure()
    letters.record([once])
    requeue.requeue(the(letters).id)
    letters.record([once])
    assert the(letters).state == "requeued"


def test_four_writers_of_the_same_failures_make_one_row_each(letters: Letters, postgres_url: str) -> None:  # D2
    facts = [failure(f"t-{number % 20}", at=NOON + number) for number in range(400)]
    shuffled = [random.Random(seed).sample(facts, len(facts)) for seed in range(4)]
    together = threading.Barrier(4)

    def write(batch: list[Fact]) -> list[str]:
        with contextlib.closing(OneConnection(postgres_url)) as connections:
            writer = Letters(connections)
            writer.get("nobody")
            together.wait()
            return writer.record(batch)

    with ThreadPoolExecutor(4) as writers:
        new = list(writers.map(write, shuffled))
    assert sorted(fact_id for ids in new for fact_id in ids) == sorted(fact.id for fact in facts)
    assert [the(letters, f"t-{number}").failure_count for number in range(20)] == [20] * 20


def test_letters_over_a_pool(letters: Letters, postgres_url: str) -> None:
    with ConnectionPool(postgres_url, min_size=1, max_size=2, open=True) as pool:
        Letters(pool).record([failure()])
        with pytest.raises(LetterRefusedError):
            Letters(pool).record([failure("t-2"), replace(failure("t-3"), exception_message="\0")])  # type: ignore[type-var]
    assert letters.count(Filter()) == 1


def test_a_batch_is_recorded_whole_or_not_at_all(letters: Letters) -> None:
    poison = failure("t-2")
    assert isinstance(poison, Failure)
    with pytest.raises(LetterRefusedError):
        letters.record([failure("t-1"), replace(poison, exception_message="\0"), failure("t-3")])
    assert letters.count(Filter()) == 0


def test_a_success_resolves_the_requeue_it_came_from(letters: Letters, requeue: Requeue) -> None:  # R6
    letters.record([failure()])
    requeue.requeue(the(letters).id)
    letters.record([resolution("t-1", requeue=1)])
    letter = the(letters)
    assert letter.state == "resolved"
    assert letter.resolved_at is not None


def test_a_success_of_an_older_requeue_resolves_nothing(letters: Letters, requeue: Requeue) -> None:  # F29
    letters.record([failure()])
    requeue.requeue(the(letters).id)
    letters.record([failure(requeue=1, at=NOON + MINUTE)])
    requeue.requeue(the(letters).id)
    letters.record([resolution("t-1", requeue=1)])
    assert the(letters).state == "requeued"


def test_a_dead_letter_is_not_resolved(letters: Letters) -> None:
    letters.record([failure(), resolution("t-1", requeue=0)])
    assert the(letters).state == "dead"


def test_a_requeue_that_fails_is_dead_again(letters: Letters, requeue: Requeue) -> None:  # R6
    letters.record([failure()])
    requeue.requeue(the(letters).id)
    letters.record([failure(requeue=1, at=NOON + MINUTE, exception_message="again")])
    letter = the(letters)
    assert (letter.state, letter.failure_count, letter.exception_message) == ("dead", 2, "again")


@pytest.mark.parametrize("resolve", [False, True])
def test_a_stale_attempt_changes_no_letter_but_is_in_its_history(
    letters: Letters, requeue: Requeue, resolve: bool
) -> None:  # D7, F29
    letters.record([failure()])
    requeue.requeue(the(letters).id)
    if resolve:
        letters.record([resolution("t-1", requeue=1)])
    before = the(letters)
    letters.record([failure(requeue=0, at=NOON + MINUTE, exception_message="stale")])
    assert the(letters) == before
    assert len(letters.history("t-1")) == 2


def test_a_resolved_letter_dies_again_only_of_a_newer_requeue(letters: Letters, requeue: Requeue) -> None:  # D7
    letters.record([failure()])
    requeue.requeue(the(letters).id)
    letters.record([resolution("t-1", requeue=1)])
    letters.record([failure(requeue=1, at=NOON + MINUTE)])
    assert the(letters).state == "resolved"
    letters.record([failure(requeue=2, at=NOON + 2 * MINUTE)])
    assert (the(letters).state, the(letters).requeue_count) == ("dead", 2)


def test_a_discarded_letter_comes_back_with_a_new_failure(letters: Letters) -> None:
    letters.record([failure()])
    assert letters.discard(the(letters).id)
    assert the(letters).state == "discarded"
    assert not letters.discard(the(letters).id)
    letters.record([failure(at=NOON + MINUTE)])
    assert the(letters).state == "dead"


def test_an_id_comes_before_a_task_id_that_looks_like_one(letters: Letters) -> None:
    letters.record([failure("a")])
    letters.record([failure(str(the(letters, "a").id))])
    assert letters.get(the(letters, "a").id).task_id == "a"  # type: ignore[union-attr]
    letters.record([failure("99999999999999999999999")])
    assert the(letters, "99999999999999999999999").task == "shop.charge"


@pytest.fixture
def various(letters: Letters) -> Letters:
    letters.record(
        [
            failure("a", at=NOON, task="shop.charge", queue="orders", exception_type="ValueError"),
            failure("b", at=NOON + 1 * MINUTE, task="shop.refund", queue="refunds", reason="poison"),
            failure("c", at=NOON + 2 * MINUTE, exception_type="requests.exceptions.HTTPError"),
            failure("d", at=NOON + 3 * MINUTE, exception_message="100% of_it is gone"),
        ]
    )
    letters.discard(the(letters, "d").id)
    return letters


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ({}, "dcba"),
        ({"task": "shop.refund"}, "b"),
        ({"queue": "refunds"}, "b"),
        ({"error": "HTTPError"}, "c"),
        ({"error": "requests.exceptions.HTTPError"}, "c"),
        ({"error": "exceptions.HTTP"}, ""),
        ({"error": "%Error"}, ""),
        ({"reason": "poison"}, "b"),
        ({"states": ("discarded",)}, "d"),
        ({"states": ("dead", "discarded")}, "dcba"),
        ({"since": datetime.fromtimestamp(NOON / 1000 + 60, UTC)}, "dcb"),
        ({"until": datetime.fromtimestamp(NOON / 1000 + 60, UTC)}, "a"),
        ({"search": "OF_IT"}, "d"),
        ({"search": "ofXit"}, ""),
        ({"search": "100%"}, "d"),
        ({"search": "0%0"}, ""),
        ({"search": "'; DROP TABLE backfill_letters; --"}, ""),
        ({"task": "shop.charge", "states": ("dead",)}, "ca"),
    ],
)
def test_lists_and_counts_mean_the_same_letters(
    various: Letters, which: dict[str, Any], expected: str
) -> None:  # R9, X2
    chosen = Filter(**which)
    assert "".join(letter.task_id for letter in various.find(chosen)) == expected
    assert various.count(chosen) == len(expected)
    assert sum(group.count for group in various.groups(chosen)) == len(expected)
    assert set(various.discardable(chosen)) == {the(various, task_id).id for task_id in expected if task_id != "d"}


def test_groups_put_together_what_failed_alike(letters: Letters) -> None:
    letters.record([failure(f"t-{number}", exception_message=f"amount {number}") for number in range(3)])
    letters.record([failure("other", exception_message="no such account")])
    groups = letters.groups(Filter())
    assert [group.count for group in groups] == [3, 1]
    assert letters.count(Filter(group=groups[0].group)) == 3


def test_counts_name_every_state(various: Letters) -> None:
    assert various.counts() == {"dead": 3, "requeueing": 0, "requeued": 0, "resolved": 0, "discarded": 1}


def test_a_connection_that_was_cut_is_made_anew(letters: Letters, postgres_url: str) -> None:
    letters.record([failure()])
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(LettersUnavailableError):
        letters.record([failure("t-2")])
    letters.record([failure("t-2")])
    assert letters.count(Filter()) == 2


def test_a_password_is_in_no_error() -> None:  # X6
    with pytest.raises(LettersUnavailableError) as refused:
        Letters.at("postgresql://ann:hunter2@127.0.0.1:1/app").get(1)
    with pytest.raises(ConfigurationError) as unreadable:
        Letters.at("postgresql://ann:hunter2%zz@127.0.0.1:1/app")
    for error in (refused.value, unreadable.value):
        assert "hunter2" not in str(error)
        assert unreadable.value.__cause__ is None
