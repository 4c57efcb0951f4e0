"""What counts as one attempt, whose task it is, and what is no business of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.waiting import wait_until
from tests.worker.place import Opener, Place, in_database

FOREIGN = """
import sys
from celery import Celery
url, queue, key, task_id = sys.argv[1:]
app = Celery("foreign", broker=url, set_as_current=False)
for _ in range(2):
    app.send_task("shop.one", (key,), task_id=task_id, queue=queue)
assert "celery_backfill" not in sys.modules
"""


@pytest.fixture(scope="module")
def shops(open_shared_place: Opener, redis_server_url: str) -> Callable[[str], Place]:
    """A place with one worker, whose store is its broker or is not."""
    opened: dict[str, Place] = {}

    def shop(store: str) -> Place:
        if store not in opened:
            other = None if store == "same" else in_database(redis_server_url, 14)
            opened[store] = open_shared_place(store_url=other)
            opened[store].worker(concurrency=2)
        return opened[store]

    return shop


@pytest.fixture(params=["same", "apart"])
def shop(shops: Callable[[str], Place], request: pytest.FixtureRequest) -> Place:
    return shops(request.param)


def test_a_message_published_twice_is_two_attempts(shop: Place, key: str) -> None:
    """F2: even with the headers of the first, its attempt id among them."""
    headers = {"backfill_id": "copied"}
    ids = [shop.send("one", key, options={"headers": headers}) for _ in range(2)]
    same = [shop.send("one", key, options={"headers": headers, "task_id": f"{key}-id"}) for _ in range(2)]
    shop.wait_ended(*ids, *same)
    shop.wait_empty()
    assert [len(shop.marks.runs_of(task_id)) for task_id in (*ids, same[0])] == [1, 1, 2]


def test_a_message_delivered_twice_is_one_attempt(shop: Place, key: str) -> None:
    """F2, C17: the same message, byte for byte, while the first is running and while it is blocked."""
    holder = shop.send("one", key, until=key)
    shop.wait_started(holder)
    quiet = f"{shop.namespace}-quiet"
    blocked = shop.send("one", key, options={"queue": quiet})
    message = shop.broker.lindex(quiet, 0)
    for _ in range(3):
        shop.broker.lpush(shop.queue, message.replace(quiet.encode(), shop.queue.encode()))
    shop.broker.delete(quiet)
    shop.wait_counts(running=1, blocked=1)
    wait_until(lambda: not shop.broker.llen(shop.queue) and not shop.unacked(), "all were taken")
    shop.touch(key)
    shop.wait_ended(blocked)
    shop.wait_empty()
    assert len(shop.marks.runs_of(blocked)) == 1


def test_a_producer_without_the_library_may_send_a_task_twice(shop: Place, key: str) -> None:
    """F2: no attempt id in the headers; each published message is an attempt."""
    url, queue = shop.environ["SHOP_REDIS_URL"], shop.queue
    subprocess.run([sys.executable, "-c", FOREIGN, url, queue, key, f"{key}-id"], check=True, timeout=30)
    wait_until(lambda: len(shop.marks.runs(key)) == 2, "both run")
    shop.wait_empty()


def test_tasks_without_a_lease_and_celerys_own_stay_celerys(shop: Place, key: str) -> None:
    """F23: no store call at all; the queue has both kinds, and both run."""
    one = shop.app.tasks["shop.one"]
    plain = shop.send("plain", key, until=key)
    shop.wait_started(plain)
    assert shop.record(plain) == {}
    assert shop.marks.runs_of(plain)[0].token == 0
    mapped = shop.app.tasks["celery.starmap"].apply_async(kwargs={"task": one.s(), "it": [[key], [key]]})
    shop.touch(key)
    assert shop.value(mapped) == [None, None]
    shop.wait_empty()


def test_a_worker_is_handed_no_task_it_does_not_know(place: Place, key: str) -> None:
    """F10, L16: two apps on one queue; what waits in the store is for those who know it."""
    right = place.worker(environ={"SHOP_PARTS": "right"}, concurrency=2)
    holder = place.send("right", key, until=f"{key}-right")
    place.wait_started(holder)
    blocked = [place.send("right", key) for _ in range(3)]
    place.wait_counts(running=1, blocked=3)
    left = place.worker(environ={"SHOP_PARTS": "left"}, concurrency=2)
    right.kill()
    wait_until(lambda: place.record(holder).get("stalls") == "1", "the other worker takes the lease back")
    # It is idle, knows the queue, and has had its chance: a task of its own on the same key runs before those.
    own = place.send("left", f"{key}-left")
    place.wait_ended(own)
    place.wait_counts(running=0, blocked=4)
    place.touch(f"{key}-right")
    place.worker(environ={"SHOP_PARTS": "right"}, concurrency=2)
    place.wait_ended(holder, *blocked)
    place.wait_empty()
    assert place.marks.order(key) == [holder, holder, *blocked]
    assert not left.says("message_unreadable")
    assert all(place.letters(task_id) == [] for task_id in (holder, *blocked))


def test_unacked_keys_of_ones_own_name_lose_nothing(open_place: Opener, key: str) -> None:
    """The broker's bookkeeping may have other names in its Redis; the store must not look for it elsewhere."""
    name = f"{key}-unacked"
    options = {"unacked_key": name, "unacked_index_key": f"{name}-index", "unacked_mutex_key": f"{name}-mutex"}
    place = open_place(conf={"broker_transport_options": options})
    place.worker(concurrency=1)
    task_id = place.send("one", key)
    place.wait_ended(task_id)
    place.wait_empty()
    wait_until(lambda: not place.broker.exists(name), "the broker's message is acked")
