"""Requeueing: one message however many ask, finished by anyone after a crash, byte for byte as it was."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis
from celery import Celery
from kombu import Connection, Exchange, Queue

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.letter import Filter, Letter
from celery_backfill.deadletters.migrate import migrate
from celery_backfill.deadletters.requeue import Outcome, Requeue
from celery_backfill.deadletters.store import Letters
from celery_backfill.errors import LettersUnavailableError, RequeueError
from celery_backfill.message import Envelope
from celery_backfill.publisher import Publisher
from tests.store.entries import failure, message, resolution


class Post:
    """Stands in for a publisher: notes what it sends, and fails when told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.sent: list[tuple[str, int]] = []

    def __call__(self, envelope: Envelope, *, requeue_id: str, requeue: int) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((requeue_id, requeue))


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def letters(postgres_url: str) -> Letters:
    migrate(OneConnection(postgres_url))
    return Letters.at(postgres_url)


@pytest.fixture
def letter_id(letters: Letters) -> int:
    letters.record([failure()])
    return the(letters).id


def the(letters: Letters, task_id: str = "t-1") -> Letter:
    letter = letters.get(task_id)
    assert letter is not None
    return letter


def requeue(url: str, post: Any, letter_id: int, abandoned_seconds: float = 60.0) -> Outcome:
    return Requeue(connections=OneConnection(url), publish=post, abandoned_seconds=abandoned_seconds).requeue(letter_id)


def test_a_requeued_letter_says_so(letters: Letters, letter_id: int, postgres_url: str) -> None:
    post = Post()
    outcome = requeue(postgres_url, post, letter_id)
    letter = the(letters)
    assert (letter.state, letter.requeue_count) == ("requeued", 1)
    assert (outcome.outcome, outcome.requeue) == ("requeued", 1)
    assert post.sent == [(str(letter.requeue_id), 1)]


def test_eight_operators_at_once_send_one_message(letters: Letters, letter_id: int, postgres_url: str) -> None:  # R1
    post, together = Post(), threading.Barrier(8)

    def operate(_: int) -> str:
        operator = Requeue(connections=OneConnection(postgres_url), publish=post)
        together.wait()
        return operator.requeue(letter_id).outcome

    with ThreadPoolExecutor(8) as operators:
        outcomes = list(operators.map(operate, range(8)))
    assert len(post.sent) == 1
    assert sorted(outcomes) == ["requeued"] + ["skipped"] * 7


@pytest.mark.parametrize("state", ["requeued", "resolved", "discarded"])
def test_a_letter_that_is_not_dead_is_not_sent(
    letters: Letters, letter_id: int, postgres_url: str, state: str
) -> None:  # R7
    if state == "discarded":
        letters.discard(letter_id)
    else:
        requeue(postgres_url, Post(), letter_id)
    if state == "resolved":
        letters.record([resolution("t-1", requeue=1)])
    post = Post()
    outcome = requeue(postgres_url, post, letter_id)
    assert (outcome.outcome, post.sent, the(letters).state) == ("skipped", [], state)


def test_what_surely_was_not_sent_is_dead_as_before(letters: Letters, letter_id: int, postgres_url: str) -> None:
    before = the(letters)
    outcome = requeue(postgres_url, Post(RequeueError("no such queue")), letter_id)
    assert (outcome.outcome, outcome.reason) == ("failed", "no such queue")
    assert the(letters) == before


def test_what_may_have_been_sent_keeps_its_id(letters: Letters, letter_id: int, postgres_url: str) -> None:  # R2
    outcome = requeue(postgres_url, Post(ConnectionError("reset by peer")), letter_id)
    assert outcome.outcome == "failed"
    assert (the(letters).state, str(the(letters).requeue_id)) == ("requeueing", outcome.requeue_id)


def test_a_crash_before_publishing_is_finished_by_anyone_later(
    letters: Letters, letter_id: int, postgres_url: str
) -> None:  # R2
    with pytest.raises(Crash):
        requeue(postgres_url, Post(Crash()), letter_id)
    abandoned, post = the(letters), Post()
    assert requeue(postgres_url, post, letter_id).outcome == "skipped"
    assert requeue(postgres_url, post, letter_id, abandoned_seconds=0).outcome == "requeued"
    assert post.sent == [(str(abandoned.requeue_id), 1)]
    assert (the(letters).state, the(letters).requeue_count) == ("requeued", 1)


def test_what_another_began_is_never_declared_unsent(letters: Letters, letter_id: int, postgres_url: str) -> None:  # R2
    """The first one may have sent it: were it dead again, the next requeue would run it a second time."""
    with pytest.raises(Crash):
        requeue(postgres_url, Post(Crash()), letter_id)
    before = the(letters)
    assert requeue(postgres_url, Post(RequeueError("no broker")), letter_id, abandoned_seconds=0).outcome == "failed"
    assert (the(letters).state, the(letters).requeue_id) == ("requeueing", before.requeue_id)


def test_of_those_who_take_up_an_abandoned_one_the_first_gets_it(
    letters: Letters, letter_id: int, postgres_url: str
) -> None:  # R1, R2
    with pytest.raises(Crash):
        requeue(postgres_url, Post(Crash()), letter_id)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE backfill_letters SET requeued_at = now() - interval '61 seconds'")
    post, together = Post(), threading.Barrier(4)

    def operate(_: int) -> str:
        together.wait()
        return requeue(postgres_url, post, letter_id).outcome

    with ThreadPoolExecutor(4) as operators:
        outcomes = list(operators.map(operate, range(4)))
    assert len(post.sent) == 1
    assert sorted(outcomes) == ["requeued"] + ["skipped"] * 3


@pytest.mark.parametrize("ending", ["failed", "resolved"])
def test_a_task_that_ends_before_its_letter_is_marked_keeps_its_ending(
    letters: Letters, letter_id: int, postgres_url: str, ending: str
) -> None:
    def send_and_end(envelope: Envelope, *, requeue_id: str, requeue: int) -> None:
        end = failure(requeue=1, at=1_700_000_060_000) if ending == "failed" else resolution("t-1", requeue=1)
        letters.record([end])

    assert requeue(postgres_url, send_and_end, letter_id).outcome == "requeued"
    assert the(letters).state == {"failed": "dead", "resolved": "resolved"}[ending]


def test_a_late_marker_does_not_touch_the_next_requeue(letters: Letters, letter_id: int, postgres_url: str) -> None:
    def slow(envelope: Envelope, **_: Any) -> None:
        letters.record([failure(requeue=1, at=1_700_000_060_000)])
        with pytest.raises(Crash):
            requeue(postgres_url, Post(Crash()), letter_id)

    requeue(postgres_url, slow, letter_id)
    assert (the(letters).state, the(letters).requeue_count) == ("requeueing", 2)


def test_a_message_that_cannot_be_read_fails_and_stays_dead(letters: Letters, postgres_url: str) -> None:
    letters.record([failure("t-2", envelope=message("t-2"))])
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE backfill_letters SET message = '\\x80049525'")
    post = Post()
    outcome = requeue(postgres_url, post, the(letters, "t-2").id)
    assert (outcome.outcome, post.sent, the(letters, "t-2").state) == ("failed", [], "dead")
    assert "cannot be read" in (outcome.reason or "")


def test_a_letter_without_its_message_is_skipped(letters: Letters, letter_id: int, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE backfill_letters SET message = NULL")
    outcome = requeue(postgres_url, Post(), letter_id)
    assert (outcome.outcome, outcome.reason) == ("skipped", "its message was not kept")


def test_an_unknown_id_fails(letters: Letters, postgres_url: str) -> None:
    assert requeue(postgres_url, Post(), 12345).reason == "there is no such letter"


def test_nothing_is_sent_while_postgresql_is_away() -> None:
    post = Post()
    with pytest.raises(LettersUnavailableError):
        requeue("postgresql://nobody@127.0.0.1:1/none", post, 1)
    assert post.sent == []


def test_candidates_are_the_dead_and_the_abandoned_of_a_filter(letters: Letters, postgres_url: str) -> None:  # R9
    letters.record([failure(f"t-{number}", at=1_700_000_000_000 + number) for number in range(4)])
    ids = [the(letters, f"t-{number}").id for number in range(4)]
    requeue(postgres_url, Post(), ids[0])
    with pytest.raises(Crash):
        requeue(postgres_url, Post(Crash()), ids[1])
    now = Requeue(connections=OneConnection(postgres_url), publish=Post())
    later = Requeue(connections=OneConnection(postgres_url), publish=Post(), abandoned_seconds=0)
    assert now.candidates(Filter()) == ids[2:]
    assert later.candidates(Filter()) == ids[1:]
    assert now.candidates(Filter(), limit=1) == ids[2:3]
    assert now.candidates(Filter(task="other")) == []


@pytest.fixture
def app(redis_url: str, namespace: str) -> Iterator[Celery]:
    app = Celery("shop", broker=redis_url, set_as_current=False)
    app.conf.task_default_queue = f"{namespace}-orders"
    yield app
    app.close()


def received(url: str, queue: str) -> Any:
    """The message that a consumer gets, as kombu gives it, undecoded."""
    with Connection(url) as connection:
        message = connection.SimpleQueue(queue).queue.bind(connection.default_channel).get(no_ack=True)
        if message is not None:
            message.delivery_info = dict(message.delivery_info)
        return message


def raw(url: str, queue: str) -> Envelope:
    """The message in the form that Redis holds, as the store copies it."""
    with redis.Redis.from_url(url) as client:
        payload = client.rpop(queue)
    assert isinstance(payload, bytes)
    return Envelope.decode(json.dumps([json.loads(payload), "", queue]))


def sent_and_kept(app: Celery, url: str, **options: Any) -> Envelope:
    """A message sent by Celery, kept as a letter keeps it."""
    app.send_task("shop.charge", (7, "é"), {"n": 2**60}, task_id="t-1", **options)
    return Envelope.decode(Envelope.of_message(received(url, app.conf.task_default_queue)).encode())


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_it_is_sent_as_it_was(app: Celery, redis_url: str, serializer: str) -> None:  # R3
    app.conf.task_serializer = serializer
    options = {"priority": 6, "headers": {"tenant": "x"}, "time_limit": 9, "link": app.signature("shop.thank")}
    kept = sent_and_kept(app, redis_url, countdown=3600, expires=7200, **options).with_headers(retries=3)
    with Publisher(app) as publisher:
        publisher(kept, requeue_id="r-1", requeue=2)
    again = received(redis_url, app.conf.task_default_queue)
    assert (again.body if isinstance(again.body, bytes) else again.body.encode()) == kept.body
    assert (again.content_type, again.content_encoding) == (kept.content_type, kept.content_encoding)
    fresh = {"retries": 0, "eta": None, "backfill_id": "r-1", "backfill_requeue": 2}
    assert again.headers == {**kept.headers, **fresh}
    assert again.headers["expires"] == kept.headers["expires"] is not None
    for name in ("correlation_id", "reply_to", "priority", "delivery_mode"):
        assert again.properties[name] == kept.properties[name]
    assert again.delivery_info["routing_key"] == app.conf.task_default_queue


@pytest.mark.parametrize("expires", ["2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00", "tomorrow"])
def test_an_expiry_that_has_passed_is_cleared(app: Celery, redis_url: str, expires: str) -> None:  # R3
    sent = sent_and_kept(app, redis_url).with_headers(expires=expires)
    kept = replace(sent, properties={**sent.properties, "expiration": "5000"})
    with Publisher(app) as publisher:
        publisher(kept, requeue_id="r-1", requeue=1)
    again = received(redis_url, app.conf.task_default_queue)
    assert again.headers["expires"] is None
    assert "expiration" not in again.properties


@pytest.mark.parametrize("expires", ["2999-01-01T00:00:00+00:00", None])
def test_a_time_to_live_is_kept(app: Celery, redis_url: str, expires: str | None) -> None:  # R3
    sent = sent_and_kept(app, redis_url).with_headers(expires=expires)
    with Publisher(app) as publisher:
        publisher(replace(sent, properties={**sent.properties, "expiration": "5000"}), requeue_id="r-1", requeue=1)
    again = received(redis_url, app.conf.task_default_queue)
    assert (again.headers["expires"], again.properties["expiration"]) == (expires, "5000")


def test_a_compressed_message_stays_so(app: Celery, redis_url: str) -> None:  # R3
    app.send_task("shop.charge", ("x" * 500,), task_id="t-1", compression="zlib")
    kept = raw(redis_url, app.conf.task_default_queue)
    with Publisher(app) as publisher:
        publisher(kept, requeue_id="r-1", requeue=1)
    again = raw(redis_url, app.conf.task_default_queue)
    assert (again.body, again.headers["compression"]) == (kept.body, kept.headers["compression"])
    with Publisher(app) as publisher:
        publisher(again, requeue_id="r-2", requeue=2)
    assert received(redis_url, app.conf.task_default_queue).payload[0] == ["x" * 500]


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_it_goes_to_its_own_exchange(app: Celery, redis_url: str, namespace: str, kind: str) -> None:  # R3
    exchange = Exchange(f"{namespace}-{kind}", kind)
    queue = Queue(f"{namespace}-{kind}-queue", exchange, routing_key="shop.#" if kind == "topic" else "shop.all")
    app.conf.task_queues = [queue]
    kept = replace(message(), exchange=exchange.name, routing_key="shop.all")
    got: list[Any] = []
    with Connection(redis_url) as connection, connection.Consumer([queue], on_message=got.append, no_ack=True):
        if kind == "fanout":  # Redis fans out to those who listen, which begins with the first poll
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        with Publisher(app) as publisher:
            publisher(kept, requeue_id="r-1", requeue=1)
        while not got:
            connection.drain_events(timeout=5)
    assert [found.headers["backfill_id"] for found in got] == ["r-1"]
    assert got[0].delivery_info["exchange"] == exchange.name


def test_a_property_cannot_pass_for_an_argument(app: Celery, redis_url: str) -> None:  # X1
    hostile = {"serializer": "pickle", "exchange": "elsewhere", "compression": "zlib", "declare": [1], "custom": "kept"}
    kept = sent_and_kept(app, redis_url)
    altered = message(properties=hostile, queue=app.conf.task_default_queue, body=kept.body)
    with Publisher(app) as publisher:
        publisher(altered, requeue_id="r-1", requeue=1)
    again = received(redis_url, app.conf.task_default_queue)
    assert Envelope.of_message(again).body == kept.body
    assert again.properties["custom"] == "kept"
    assert "serializer" not in again.properties


def test_a_queue_that_the_app_may_not_make_is_refused(app: Celery) -> None:
    app.conf.task_create_missing_queues = False
    app.conf.task_queues = {"known": {}}
    with Publisher(app) as publisher, pytest.raises(RequeueError, match="task_queues"):
        publisher(message(queue="unknown"), requeue_id="r-1", requeue=1)


@pytest.mark.parametrize("broker", ["redis://:hunter2@127.0.0.1:1/0", "amqp://ann:hunter2@127.0.0.1:1//"])
def test_a_broker_that_is_away_is_surely_not_reached(broker: str) -> None:
    app = Celery(broker=broker, set_as_current=False)
    with Publisher(app) as publisher, pytest.raises(RequeueError, match="broker") as refused:
        publisher(message(), requeue_id="r-1", requeue=1)
    assert "hunter2" not in str(refused.value)  # X6


def test_many_go_over_one_connection(app: Celery, redis_url: str) -> None:
    kept = sent_and_kept(app, redis_url)
    with Publisher(app) as publisher:
        for number in range(50):
            publisher(kept, requeue_id=f"r-{number}", requeue=1)
    ids = [received(redis_url, app.conf.task_default_queue).headers["backfill_id"] for _ in range(50)]
    assert ids == [f"r-{number}" for number in range(50)]
