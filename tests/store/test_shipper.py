"""The shipper: everything arrives, once; nothing holds up anything else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import pytest
import redis

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.letter import Filter
from celery_backfill.deadletters.migrate import migrate
from celery_backfill.deadletters.record import Fact
from celery_backfill.deadletters.store import Letters
from celery_backfill.errors import LetterRefusedError, LettersUnavailableError
from celery_backfill.events import Event, subscribe, unsubscribe
from celery_backfill.leases.outbox import Outbox
from celery_backfill.worker.outage import Outage
from celery_backfill.worker.shipper import Shipper
from tests.store.entries import Fields, failed, resolved
from tests.waiting import wait_until


class Flaky:
    """Letters whose database refuses or is away as the test says."""

    def __init__(self, letters: Letters) -> None:
        self.letters = letters
        self.away = False
        self.commit_lost = False
        self.refused: set[str] = set()
        self.refused_reduced: set[str] = set()

    def record(self, facts: Sequence[Fact]) -> Sequence[str]:
        if self.away:
            raise LettersUnavailableError("connection refused")
        for fact in facts:
            reduced = getattr(fact, "reason", "") == "invalid"
            if fact.task_id in (self.refused_reduced if reduced else self.refused):
                raise LetterRefusedError("bad data")
        recorded = self.letters.record(facts)
        if self.commit_lost:
            self.commit_lost = False
            raise LettersUnavailableError("the server closed the connection unexpectedly")
        return recorded


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def outbox(client: redis.Redis, namespace: str) -> Outbox:
    return Outbox(client, namespace)


@pytest.fixture
def letters(postgres_url: str) -> Letters:
    migrate(OneConnection(postgres_url))
    return Letters.at(postgres_url)


@pytest.fixture
def flaky(letters: Letters) -> Flaky:
    return Flaky(letters)


@pytest.fixture
def shipper(outbox: Outbox, flaky: Flaky) -> Shipper:
    return Shipper(outbox=outbox, letters=flaky, reader="one", block_ms=50)


@pytest.fixture
def events() -> Iterator[list[Event]]:
    seen: list[Event] = []
    subscribe(seen.append)
    yield seen
    unsubscribe(seen.append)


def put(client: redis.Redis, namespace: str, *entries: Fields) -> None:
    for entry in entries:
        client.xadd(f"{{{namespace}}}:outbox", entry)  # type: ignore[arg-type]


def test_a_tick_moves_what_is_there(
    client: redis.Redis, namespace: str, outbox: Outbox, letters: Letters, shipper: Shipper
) -> None:
    put(client, namespace, failed("t-1"), failed("t-2"))
    assert shipper.ship() == 2
    assert (outbox.length(), letters.count(Filter())) == (0, 2)
    assert shipper.ship() == 0


def test_a_failure_and_a_resolution_take_the_same_way(
    client: redis.Redis, namespace: str, letters: Letters, shipper: Shipper
) -> None:
    put(client, namespace, failed("t-1"), resolved("t-1", requeue=1))
    assert shipper.ship() == 2
    assert letters.counts()["dead"] == 1


def test_what_fails_while_postgresql_is_away_arrives_later_once_each(
    client: redis.Redis, namespace: str, outbox: Outbox, letters: Letters, flaky: Flaky, shipper: Shipper
) -> None:  # D1
    flaky.away = True
    put(client, namespace, *(failed(f"t-{number}") for number in range(1000)))
    for _ in range(3):
        with pytest.raises(LettersUnavailableError):
            shipper.ship()
    assert outbox.length() == 1000
    flaky.away = False
    while shipper.ship():
        pass
    assert (outbox.length(), letters.count(Filter())) == (0, 1000)
    assert {letter.failure_count for letter in letters.find(Filter())} == {1}


def test_a_commit_whose_answer_was_lost_is_one_row(
    client: redis.Redis, namespace: str, outbox: Outbox, letters: Letters, flaky: Flaky, shipper: Shipper
) -> None:  # D3
    put(client, namespace, failed("t-1"))
    flaky.commit_lost = True
    with pytest.raises(LettersUnavailableError):
        shipper.ship()
    assert shipper.ship() == 1
    letter = letters.get("t-1")
    assert letter is not None
    assert (letter.failure_count, outbox.length()) == (1, 0)


@pytest.mark.parametrize("recorded", [False, True])
def test_what_a_killed_shipper_had_taken_is_shipped_by_another_once(
    client: redis.Redis, namespace: str, outbox: Outbox, letters: Letters, flaky: Flaky, recorded: bool
) -> None:  # D2
    put(client, namespace, failed("t-1"))
    dead = Shipper(outbox=outbox, letters=flaky, reader="dead", block_ms=50)
    flaky.away, flaky.commit_lost = not recorded, recorded
    with pytest.raises(LettersUnavailableError):
        dead.ship()
    flaky.away = False
    heir = Shipper(outbox=outbox, letters=letters, reader="heir", block_ms=50, idle_ms=0)
    wait_until(heir.ship, "the heir ships what the dead one had taken")
    letter = letters.get("t-1")
    assert letter is not None
    assert (letter.failure_count, outbox.length()) == (1, 0)


def test_an_entry_that_is_refused_holds_up_no_other(
    client: redis.Redis, namespace: str, outbox: Outbox, letters: Letters, flaky: Flaky, shipper: Shipper
) -> None:
    flaky.refused = {"t-2"}
    put(client, namespace, failed("t-1"), failed("t-2"), failed("t-3"))
    assert shipper.ship() == 3
    reasons = {letter.task_id: letter.reason for letter in letters.find(Filter())}
    assert reasons == {"t-1": "exhausted", "t-2": "invalid", "t-3": "exhausted"}
    assert (outbox.length(), shipper.left) == (0, 0)


def test_an_entry_that_is_refused_in_any_form_stays_and_is_told_of_once(
    client: redis.Redis, namespace: str, outbox: Outbox, letters: Letters, flaky: Flaky, events: list[Event]
) -> None:
    flaky.refused = flaky.refused_reduced = {"t-2"}
    put(client, namespace, failed("t-1"), failed("t-2"), failed("t-3"))
    shipper = Shipper(outbox=outbox, letters=flaky, reader="one", block_ms=50, idle_ms=0)
    assert shipper.ship() == 2
    assert shipper.ship() == 0
    assert (outbox.length(), shipper.left, letters.count(Filter())) == (1, 1, 2)
    assert [event.action for event in events if event.level >= logging.ERROR] == ["dead_letter_left"]


def test_an_unreadable_letter_is_recorded_as_invalid(
    client: redis.Redis, namespace: str, letters: Letters, shipper: Shipper
) -> None:
    put(client, namespace, {**failed("t-1"), b"letter": b"{"}, {b"kind": b"failed", b"message": b"\x80"}, failed("t-3"))
    assert shipper.ship() == 3
    assert sorted(letter.reason for letter in letters.find(Filter())) == ["exhausted", "invalid", "invalid"]


def test_an_entry_from_a_newer_version_is_left_for_it(
    client: redis.Redis, namespace: str, outbox: Outbox, shipper: Shipper
) -> None:  # S4
    put(client, namespace, {b"kind": b"endings"}, failed("t-1"))
    assert shipper.ship() == 1
    assert (outbox.length(), shipper.left) == (1, 1)


def test_stopping_ships_once_more(
    client: redis.Redis,
    namespace: str,
    outbox: Outbox,
    flaky: Flaky,
    shipper: Shipper,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Outage, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(Outage, "LONGEST_WAIT", 60.0)
    flaky.away = True
    put(client, namespace, failed("t-1"))
    shipper.start()
    wait_until(lambda: any(event.action == "dead_letters_wait" for event in events), "the outage was told of")
    flaky.away = False
    shipper.stop(timeout=10)
    assert outbox.length() == 0


def test_the_thread_outlives_an_outage(
    client: redis.Redis, namespace: str, letters: Letters, flaky: Flaky, shipper: Shipper, events: list[Event]
) -> None:  # D1
    flaky.away = True
    put(client, namespace, failed("t-1"))
    shipper.start()
    wait_until(lambda: any(event.action == "dead_letters_wait" for event in events), "the outage was told of")
    flaky.away = False
    wait_until(lambda: letters.get("t-1"), "the failure was recorded after the outage")
    wait_until(lambda: any(event.action == "dead_letters_flow" for event in events), "its end was told of")
    shipper.stop(timeout=5)


def test_stopping_during_an_outage_is_quick_and_loses_nothing(
    client: redis.Redis, namespace: str, outbox: Outbox, flaky: Flaky, shipper: Shipper, events: list[Event]
) -> None:
    flaky.away = True
    put(client, namespace, failed("t-1"))
    shipper.start()
    wait_until(lambda: any(event.action == "dead_letters_wait" for event in events), "the outage was told of")
    shipper.stop(timeout=2)
    assert outbox.length() == 1


def test_an_hour_of_outage_is_a_dozen_lines(events: list[Event]) -> None:  # D1
    now = [0.0]
    outage = Outage("dead_letters_wait", "dead_letters_flow", clock=lambda: now[0])
    waits = []
    while now[0] < 3600:
        waits.append(outage.failed(ConnectionError("refused")))
        now[0] += waits[-1]
    outage.over()
    lines = [event for event in events if event.action == "dead_letters_wait"]
    assert 8 <= len(lines) <= 14
    assert waits[0] <= 0.5
    assert max(waits) <= 30
    assert [event.action for event in events].count("dead_letters_flow") == 1
    assert len(set(waits[-5:])) > 1, "no jitter"
