"""F17: ends that the store decided get their Celery side, whatever is away or broken meanwhile."""

from __future__ import annotations

import base64
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chord, signals
from celery.exceptions import WorkerLostError

from celery_backfill.events import Event, subscribe, unsubscribe
from celery_backfill.worker.announcement import Ended
from celery_backfill.worker.outage import Outage
from tests.store.desk import TEXT, Desk
from tests.waiting import wait_until
from tests.worker.redis_server import RedisServer, redis_server

Opener = Callable[..., Desk]


@pytest.fixture
def open_desk(redis_url: str, namespace: str) -> Iterator[Opener]:
    desks: list[Desk] = []

    def open_one(**options: Any) -> Desk:
        desks.append(Desk(redis_url, namespace, **options))
        return desks[-1]

    yield open_one
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(open_desk: Opener) -> Desk:
    return open_desk()


@pytest.fixture
def results(tmp_path: Path) -> Iterator[RedisServer]:
    """A result backend that can be taken away."""
    with redis_server(tmp_path / "results") as server:
        yield server


@pytest.fixture
def events() -> Iterator[list[Event]]:
    seen: list[Event] = []
    subscribe(seen.append)
    yield seen
    unsubscribe(seen.append)


def errors(events: list[Event]) -> list[str]:
    return [event.action for event in events if event.level >= logging.ERROR]


def test_poison_is_a_failure_with_all_that_celery_does_at_one(desk: Desk) -> None:
    """F17: result, errback, signal, event; and nothing is left."""
    told: list[dict[str, Any]] = []

    def receive(**facts: Any) -> None:
        told.append(facts)

    signals.task_failure.connect(receive)
    try:
        task_id = desk.put(args=(), kwargs={})
        assert desk.announcer().announce() == 1
    finally:
        signals.task_failure.disconnect(receive)
    with pytest.raises(WorkerLostError, match=TEXT):
        desk.app.AsyncResult(task_id).get(timeout=5)
    assert desk.noted == [(task_id, TEXT)]
    assert [(facts["sender"].name, facts["task_id"]) for facts in told] == [("shop.work", task_id)]
    assert isinstance(told[0]["exception"], WorkerLostError)
    (sent,) = desk.dispatcher.sent
    assert (sent[0], sent[1]["uuid"]) == ("task-failed", task_id)
    assert desk.stream.length() == 0


def test_a_task_that_is_unknown_here_fails_all_the_same(desk: Desk) -> None:
    """F17: any worker announces; only the signal has nobody to be from."""
    task_id = desk.put("other.work")
    assert desk.announcer().announce() == 1
    assert desk.state(task_id) == "FAILURE"
    assert desk.noted == [(task_id, TEXT)]
    assert len(desk.dispatcher.sent) == 1


def test_without_a_result_backend_the_errbacks_are_called_all_the_same(open_desk: Opener) -> None:
    desk = open_desk(backend="disabled://")
    task_id = desk.put()
    assert desk.announcer().announce() == 1
    assert (desk.noted, desk.stream.length()) == ([(task_id, TEXT)], 0)


def test_a_success_stays_and_nobody_is_told_of_a_failure(desk: Desk) -> None:
    """F17: a run that was given up for lost came to its end; Celery protects its result, not its errbacks."""
    task_id = desk.put()
    desk.app.backend.mark_as_done(task_id, "done")
    assert desk.announcer().announce() == 1
    assert desk.app.AsyncResult(task_id).get(timeout=5) == "done"
    assert (desk.noted, desk.dispatcher.sent, desk.stream.length()) == ([], [], 0)


def test_a_success_that_its_chord_does_not_know_of_is_counted_once(desk: Desk) -> None:
    """F17: Celery stores a success first and then counts it; the worker was killed between the two."""
    desk.app.conf.task_default_queue = desk.queue
    work, gather = desk.app.tasks["shop.work"], desk.app.tasks["shop.gather"]
    result = chord([work.s(), work.s(), work.s()])(gather.s())
    first, second, third = (str(part.id) for part in result.parent.results)
    messages = [desk.sent() for _ in range(3)]
    desk.app.backend.store_result(first, 1, "SUCCESS")
    for task_id, message in ((first, messages[0]), (first, messages[0])):
        desk.put_raw(message, "shop.work", task_id)
    announcer = desk.announcer()
    assert (announcer.announce(), announcer.announce()) == (1, 1)
    for task_id, message, value in ((second, messages[1], 2), (third, messages[2], 3)):
        assert not desk.waiting()
        ended = Ended.read(desk.site, {b"message": message.encode()}, lambda: True)
        desk.app.backend.mark_as_done(task_id, value, request=ended.request._context)
    (sent,) = desk.waiting()
    assert json.loads(base64.b64decode(json.loads(sent)["body"]))[0] == [[1, 2, 3]]


@pytest.mark.parametrize(("stored_if_ignored", "state"), [(False, "PENDING"), (True, "FAILURE")])
def test_a_result_that_nobody_wants_is_not_stored(desk: Desk, stored_if_ignored: bool, state: str) -> None:
    desk.app.tasks["shop.work"].store_errors_even_if_ignored = stored_if_ignored
    task_id = desk.put(ignore_result=True)
    assert desk.announcer().announce() == 1
    assert desk.state(task_id) == state
    assert desk.noted == [(task_id, TEXT)]


def test_a_result_backend_that_is_away_is_awaited(open_desk: Opener, results: RedisServer, events: list[Event]) -> None:
    """F17: the ends wait, quietly, and are announced once when it is back."""
    desk = open_desk(backend=results.url)
    results.kill()
    announcer = desk.announcer()
    announcer.start()
    task_ids = [desk.put() for _ in range(3)]
    wait_until(lambda: any(event.action == "endings_wait" for event in events), "the outage was told of")
    assert desk.stream.length() == 3
    results.start()
    wait_until(lambda: desk.stream.length() == 0, "all are announced")
    announcer.stop(timeout=10)
    assert [desk.state(task_id) for task_id in task_ids] == ["FAILURE"] * 3
    assert sorted(desk.noted) == sorted((task_id, TEXT) for task_id in task_ids)
    assert [event.action for event in events].count("endings_wait") == 1
    assert [event.action for event in events].count("endings_flow") == 1


def test_of_all_who_waited_for_the_backend_one_calls_the_errbacks(open_desk: Opener, results: RedisServer) -> None:
    """F17: an end is taken over from a reader that only waits; both go on when the backend answers again."""
    desk = open_desk(backend=results.url)
    readers = [desk.announcer(f"reader {number}", idle_ms=0) for number in range(4)]
    results.freeze()
    task_id = desk.put()
    threads = [threading.Thread(target=reader.announce) for reader in readers]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda number=number: _deliveries(desk) == number + 1, f"reader {number} has taken it")
    results.thaw()
    for thread in threads:
        thread.join(30)
    assert desk.noted == [(task_id, TEXT)]
    assert (desk.state(task_id), desk.stream.length()) == ("FAILURE", 0)


def _deliveries(desk: Desk) -> int:
    pending = desk.stream._client.xpending_range(desk.stream._stream, desk.stream.group, "-", "+", 1)
    return int(pending[0]["times_delivered"]) if pending else 0


def test_a_dead_readers_ends_are_taken_over(desk: Desk) -> None:
    """F17: also those behind many that live readers have."""
    task_ids = [desk.put() for _ in range(40)]
    assert len(desk.stream.read("dead", count=50, block_ms=0, idle_ms=60_000)) == 40
    heir = desk.announcer("heir", idle_ms=0)
    wait_until(lambda: not heir.announce() and desk.stream.length() == 0, "the heir announces all")
    assert [task_id for task_id, _ in desk.noted] == task_ids


def test_one_behind_many_that_stay_is_taken_over(desk: Desk) -> None:
    """The server looks at ten entries a call: those that stay at the head must not hide the rest."""
    for _ in range(30):
        desk.put(kind="newer")
    task_id = desk.put()
    desk.stream.read("dead", count=50, block_ms=0, idle_ms=60_000)
    client, key, group = desk.stream._client, desk.stream._stream, desk.stream.group
    last = client.xpending_range(key, group, "-", "+", 50)[-1]["message_id"]
    client.xclaim(key, group, "dead", 0, [last], idle=100_000, justid=True)
    heir = desk.announcer("heir", idle_ms=90_000)
    wait_until(heir.announce, "the heir announces it")
    assert desk.state(task_id) == "FAILURE"


def test_a_broker_that_is_away_holds_up_only_what_needs_it(open_desk: Opener, events: list[Event]) -> None:
    """F17: no errback is called, not even one in this process, before all of them can be."""
    desk = open_desk(broker="redis://127.0.0.1:1/0")
    waiting = desk.put()
    free = desk.put(noted=False)
    announcer = desk.announcer()
    assert (announcer.announce(), announcer.announce()) == (0, 1)
    assert (desk.state(waiting), desk.state(free)) == ("PENDING", "FAILURE")
    assert (desk.noted, desk.stream.length()) == ([], 1)


def test_what_another_has_taken_over_is_not_tried_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """F17: one announces it, though both had it."""
    monkeypatch.setattr(Outage, "FIRST_WAIT", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(desk.app.backend, "get_task_meta", _away)
        task_id = desk.put()
        slow = desk.announcer("slow")
        assert slow.announce() == 0
    desk.stream.read("heir", count=1, block_ms=0, idle_ms=0)
    assert slow.announce() == 0
    assert (desk.state(task_id), desk.noted, desk.stream.length()) == ("PENDING", [], 1)


def test_an_unreadable_end_is_dropped_and_told_of_once(desk: Desk, events: list[Event]) -> None:
    """F17: what the entry itself says is still done: whoever waits for the result is told."""
    broken = [desk.put_raw(message, "shop.work", str(uuid.uuid4())) for message in ("{", b"\x80", "[{}, 1, 2]")]
    desk.put_raw("{", task="", task_id="")
    whole = desk.put()
    announcer = desk.announcer()
    assert sum(announcer.announce() for _ in range(6)) == 5
    assert [desk.state(task_id) for task_id in (*broken, whole)] == ["FAILURE"] * 4
    assert errors(events).count("ending_unreadable") == 4
    assert (desk.noted, desk.stream.length()) == ([(whole, TEXT)], 0)


def test_a_message_that_is_unreadable_here_is_left_for_a_while_to_who_knows_the_task(
    desk: Desk, events: list[Event]
) -> None:
    """F17: a pickled message, say, of classes that only its own workers have."""
    envelope = json.dumps([{"body": "?", "headers": {"id": "1", "task": "other.work"}, "properties": {}}, "", ""])
    task_id = desk.put_raw(envelope, "other.work", str(uuid.uuid4()))
    assert desk.announcer().announce() == 0
    assert (desk.state(task_id), desk.stream.length()) == ("PENDING", 1)
    patient = desk.announcer("patient", idle_ms=0, left_seconds=0)
    assert patient.announce() == 1
    assert (desk.state(task_id), desk.stream.length()) == ("FAILURE", 0)


def test_an_end_from_a_newer_version_is_left_for_it(desk: Desk, events: list[Event]) -> None:
    """S4."""
    task_id = desk.put(kind="newer")
    whole = desk.put()
    announcer = desk.announcer()
    assert (announcer.announce(), announcer.announce()) == (0, 1)
    again = desk.announcer("another", idle_ms=0)
    assert announcer.announce() == again.announce() == 0
    assert (desk.state(task_id), desk.state(whole), desk.stream.length()) == ("PENDING", "FAILURE", 1)
    assert errors(events).count("ending_left") == 2, "once a worker"


def test_one_errback_that_fails_is_not_the_others_fault(desk: Desk) -> None:
    @desk.app.task(name="shop.careless", shared=False)
    def careless(request: Any, exc: Exception, traceback: Any) -> None:
        raise ValueError("careless")

    errbacks = [desk.app.signature("shop.careless"), desk.app.signature("shop.note")]
    task_id = desk.put(noted=False, link_error=errbacks)
    assert desk.announcer().announce() == 1
    assert desk.noted == [(task_id, TEXT)]


def test_the_errbacks_that_were_called_are_not_called_again(
    open_desk: Opener, redis_url: str, results: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F17: the broker goes away between two of them."""
    monkeypatch.setattr(Outage, "FIRST_WAIT", 0.0)
    desk = open_desk(broker=results.url, backend=redis_url)

    @desk.app.task(name="shop.fatal", shared=False)
    def fatal(request: Any, exc: Exception, traceback: Any) -> None:
        desk.noted.append((request.id, str(exc)))
        results.kill()

    desk.app.conf.task_default_queue = desk.queue
    errbacks = [desk.app.signature("shop.fatal"), desk.app.signature("other.errback")]
    task_id = desk.put(noted=False, link_error=errbacks)
    announcer = desk.announcer()
    assert announcer.announce() == 0
    results.start()
    wait_until(announcer.announce, "the other errback is sent")
    assert desk.noted == [(task_id, TEXT)]
    with redis.Redis.from_url(results.url) as client:
        assert client.llen(desk.queue) == 1


def test_a_store_that_goes_away_at_the_end_makes_no_second_call(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """F17: what is announced is remembered until it is removed."""
    task_id = desk.put()
    announcer = desk.announcer(idle_ms=0)
    with monkeypatch.context() as patched:
        patched.setattr(desk.stream, "finish", _away)
        with pytest.raises(redis.ConnectionError):
            announcer.announce()
        with pytest.raises(redis.ConnectionError):
            announcer.announce()
    assert announcer.announce() == 0
    assert (desk.noted, desk.stream.length()) == ([(task_id, TEXT)], 0)


def _away(*_: Any, **__: Any) -> None:
    raise redis.ConnectionError("gone")


def test_stopping_announces_what_there_is(
    open_desk: Opener, results: RedisServer, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outage, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(Outage, "LONGEST_WAIT", 60.0)
    desk = open_desk(backend=results.url)
    results.kill()
    announcer = desk.announcer()
    announcer.start()
    desk.put()
    wait_until(lambda: any(event.action == "endings_wait" for event in events), "the outage was told of")
    results.start()
    desk.put()
    announcer.stop(timeout=10)
    assert (len(desk.noted), desk.stream.length()) == (2, 0)
