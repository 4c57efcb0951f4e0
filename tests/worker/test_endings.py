"""F17: ends that a script decided get their Celery side from a worker: no caller, chain or chord waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, WorkerLostError

from tests.waiting import wait_until
from tests.worker.place import Opener, Place
from tests.worker.redis_server import redis_server


def test_poison_stops_a_chain_and_fails_a_chord(place: Place, key: str) -> None:
    """F17: errbacks are called, links are not; whoever waits is told, and so are monitors. Celery is slow to notice."""
    _never_subscribed(place)
    place.worker(concurrency=6, options=("-E",))
    with _failed_events(place) as failed:
        chained, poisoned = _poisoned_chain(place, key)
        chorded = _poisoned_chord(place, f"{key}-chord")
        for result in (chained.parent, chained):
            _raises(result, WorkerLostError, "lost 2 times")
        _raises(chorded, ChordError, "lost 2 times")
        wait_until(lambda: poisoned in failed(), "the event is sent")
    # An errback's key is what Celery calls it with: the id of the task that failed, or of the chord's body.
    place.wait_runs(1, poisoned)
    place.wait_runs(1, str(chorded.id))
    place.wait_empty()
    assert {run.key for run in place.marks.runs()} == {
        *(key, poisoned, str(chorded.id)),
        *(f"{key}-chord-{part}" for part in ("succeed", "die", "free")),
    }
    assert place.wait_letter(poisoned)["reason"] == "poison"


def _poisoned_chain(place: Place, key: str) -> tuple[Any, str]:
    ending, free = place.app.tasks["shop.ending"], place.app.tasks["shop.free"]
    first = ending.si(key, "die")
    first.link(free.si(f"{key}-link"))
    first.link_error(free.s())
    result = chain(first, free.si(f"{key}-next")).apply_async()
    return result, str(result.parent.id)


def _poisoned_chord(place: Place, key: str) -> Any:
    ending, free = place.app.tasks["shop.ending"], place.app.tasks["shop.free"]
    header = [ending.s(f"{key}-{how}", how) for how in ("succeed", "die")]
    return chord([*header, free.s(f"{key}-free")])(place.app.tasks["shop.collect"].s(key).on_error(free.s()))


def test_a_worker_that_does_not_know_the_task_ends_its_chord(place: Place, key: str) -> None:
    """F17: the task's only worker is killed more often than it allows; another one finds it, and has other tasks."""
    _never_subscribed(place)
    elsewhere = f"{place.namespace}-elsewhere"
    place.worker(queues=(elsewhere,), environ={"SHOP_PARTS": "right"}, pool="threads", concurrency=1)
    worker = place.worker(conf={"backfill_max_stalls": 0}, pool="threads", concurrency=3)
    tasks = place.app.tasks
    errback = tasks["shop.right"].s().set(queue=elsewhere)
    header = [tasks["shop.free"].s(f"{key}-{n}") for n in range(2)] + [tasks["shop.one"].s(key, until="never")]
    header[-1].link_error(errback)
    result = chord(header)(tasks["shop.collect"].s(key).on_error(errback))
    poisoned, others = result.parent.results[-1], result.parent.results[:-1]
    place.wait_started(poisoned.id)
    wait_until(lambda: all(other.ready() for other in others), "the rest has ended")
    worker.kill()
    _raises(result, ChordError, "lost 1 times")
    _raises(poisoned, WorkerLostError, f"lost 1 times.*{worker.name}")
    place.wait_runs(1, str(poisoned.id))
    place.wait_runs(1, str(result.id))
    place.wait_empty()


def test_a_result_backend_that_is_away_gets_it_when_it_is_back(open_place: Opener, key: str, tmp_path: Path) -> None:
    """F17: the worker goes on with other tasks meanwhile."""
    with redis_server(tmp_path / "results") as results:
        place = open_place(conf={"result_backend": results.url, "backfill_max_stalls": 0})
        lost = place.worker(pool="threads", concurrency=1)
        poisoned = place.send("one", key, until="never", options={"link_error": place.app.tasks["shop.free"].s()})
        place.wait_started(poisoned)
        worker = place.worker(pool="threads", concurrency=1)
        results.kill()
        lost.kill()
        worker.wait_says("endings_wait")
        successor = place.send("one", key, options={"ignore_result": True})
        place.wait_ended(successor)
        assert not place.marks.runs(poisoned)
        results.start()
        place.wait_state(poisoned, "FAILURE")
        place.wait_runs(1, poisoned)
        worker.wait_says("endings_flow")
        place.wait_empty()


def _never_subscribed(place: Place) -> Place:
    """Where a group's results are made, Celery subscribes to them for as long as the app lives."""
    place.app.backend.add_pending_result = lambda result, **_: result
    return place


def _raises(result: Any, error: type[Exception], text: str) -> None:
    """Whoever waits for it gets that error."""
    wait_until(result.ready, "there is a result", 20)
    with pytest.raises(error, match=text):
        result.get(follow_parents=False)


@contextmanager
def _failed_events(place: Place) -> Iterator[Callable[[], list[str]]]:
    """Gives what has the ids of the tasks of which monitors have heard that they failed, from here on."""
    seen: list[str] = []
    with place.app.connection_for_read() as connection:
        receiver = place.app.events.Receiver(
            connection, handlers={"task-failed": lambda event: seen.append(event["uuid"])}
        )
        with receiver.consumer_context(wakeup=False) as (own, _, _):

            def heard() -> list[str]:
                with suppress(TimeoutError):
                    own.drain_events(timeout=0.1)
                return seen

            # Redis is subscribed to when it is first listened to.
            heard()
            yield heard
