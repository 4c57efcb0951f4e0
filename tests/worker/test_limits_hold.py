"""Limits hold for whatever arrives, however many workers there are, and nothing stays behind."""

from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Opener, Place
from tests.worker.workers import POOLS

LIMIT = 3


@pytest.fixture(scope="module")
def crowd(open_shared_place: Opener) -> Place:
    """A place with a worker of each pool. One of them has a second queue for itself."""
    place = open_shared_place()
    for pool in POOLS:
        queues = (place.queue, _own_queue(place)) if pool == "threads" else (place.queue,)
        place.crew.start(queues=queues, pool=pool, concurrency=2, ready=False)
    for worker in place.crew.all:
        worker.wait_ready()
    return place


def _own_queue(place: Place) -> str:
    return f"{place.namespace}-own"


def test_many_at_once_never_exceed_the_limit(crowd: Place, key: str) -> None:
    """L8: 200 tasks of one key at five workers; each runs once, and as many as may."""
    ids = crowd.send_many(200, "three", key, 0.01)
    crowd.wait_ended(*ids, timeout=60)
    runs = crowd.marks.runs(key)
    assert sorted(run.task_id for run in runs) == sorted(ids)
    assert largest_at_once(runs) == LIMIT
    crowd.wait_empty()


def test_none_stays_blocked_when_permits_free_while_others_arrive(crowd: Place, key: str) -> None:
    """L1: short tasks come and end all the time, so that releases race arrivals."""
    ids: list[str] = []
    for _ in range(30):
        ids += crowd.send_many(10, "one", key)
        crowd.wait_runs(len(ids) - 5, key)
    crowd.wait_ended(*ids)
    runs = crowd.marks.runs(key)
    assert (len(runs), largest_at_once(runs)) == (len(ids), 1)
    crowd.wait_empty()


def test_groups_chords_and_chains_with_blocked_members_complete_once(crowd: Place, key: str) -> None:
    """L9: every member has the same key of limit 1."""
    one, add, collect = (crowd.app.tasks[f"shop.{name}"] for name in ("one", "add", "collect"))
    several = group(one.si(key, value=number) for number in range(10)).apply_async()
    gathered = chord([one.si(key, value=number) for number in range(10)], collect.s(key)).apply_async()
    chained = chain(one.si(key, value=1), add.s(key), add.s(key), add.s(key)).apply_async()
    nested = chain(group(one.si(key, value=number) for number in range(3)), collect.s(key)).apply_async()
    assert crowd.value(several) == list(range(10))
    assert sorted(crowd.value(gathered)) == list(range(10))
    assert crowd.value(chained) == 4
    assert sorted(crowd.value(nested)) == [0, 1, 2]
    runs = crowd.marks.runs(key)
    assert len(runs) == len({run.task_id for run in runs}) == 10 + 11 + 4 + 4
    assert largest_at_once(runs) == 1
    crowd.wait_empty()


def test_a_link_of_a_blocked_task_runs_once(crowd: Place, key: str) -> None:
    """L9: callbacks."""
    one, add = crowd.app.tasks["shop.one"], crowd.app.tasks["shop.add"]
    for _ in range(5):
        one.apply_async((key,), {"value": 1}, link=add.s(f"{key}-link"))
    wait_until(lambda: len(crowd.marks.runs(f"{key}-link")) == 5, "every callback has run")
    crowd.wait_empty()
    assert len(crowd.marks.runs(f"{key}-link")) == 5


def test_two_tasks_with_one_key_share_its_limit(crowd: Place, key: str) -> None:
    """L11: keys are one namespace."""
    ids = [crowd.send(name, *args) for _ in range(10) for name, args in (("one", (key,)), ("add", (1, key)))]
    crowd.wait_ended(*ids)
    assert largest_at_once(crowd.marks.runs(key)) == 1


def test_a_call_may_have_its_own_key(crowd: Place, key: str) -> None:
    """F5: by ``apply_async``, by ``send_task`` and by a signature, of a task that is not known here as well."""
    own = f"{key}-own"
    # Not on solo, whose worker may have begun to read one of those sent below.
    options = {"concurrency_key": own, "queue": _own_queue(crowd)}
    holder = crowd.send("one", key, until=key, options=options)
    crowd.wait_started(holder)
    assert crowd.held(own) == 1
    assert crowd.held(key) == 0
    sent = [
        crowd.app.send_task("shop.one", (key,), concurrency_key=own),
        crowd.app.signature("shop.one", (key,), options={"concurrency_key": own}).apply_async(),
        crowd.app.tasks["shop.one"].s(key).set(concurrency_key=own).apply_async(),
        crowd.app.tasks["shop.one"].apply_async((key,), concurrency_key=own),
    ]
    crowd.wait_counts(running=1, blocked=len(sent))
    crowd.touch(key)
    crowd.wait_ended(*(result.id for result in sent))
    crowd.wait_empty()
