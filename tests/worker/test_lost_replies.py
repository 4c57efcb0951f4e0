"""C24, F1: the store did what it was asked, and its answer was lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_backfill.leases.script import ADMIT, CLAIM, SETTLE, Script
from tests.waiting import wait_until
from tests.worker.marks import largest_at_once
from tests.worker.place import Place
from tests.worker.proxy import Proxy, proxy_to

#: A call is sent twice at once; when three replies are lost, the gate takes the store to be away, and comes back to it.
LOSSES = (1, 3)


@pytest.fixture
def proxy(redis_server_url: str) -> Iterator[Proxy]:
    with proxy_to(redis_server_url) as proxy:
        yield proxy


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("times", LOSSES)
@pytest.mark.parametrize("script", [SETTLE, CLAIM, ADMIT], ids=lambda script: script.name)
def test_what_was_handed_on_runs_once_and_nothing_stalls(
    place: Place, proxy: Proxy, key: str, script: Script, times: int, pool: str
) -> None:
    """C24: in a line of one key, among retries that fall due, and among new ones."""
    worker = place.worker(pool=pool, concurrency=2, environ={"SHOP_REDIS_URL": proxy.url})
    ids: list[str] = []
    for number in range(3):
        holder = place.send("one", key, until=f"{key}-{number}")
        place.wait_started(holder)
        blocked = place.send_many(10, "one", key, 0.01)
        due = [place.send("again", f"{key}-{number}-{n}", "thrown", countdown=1) for n in range(4)]
        place.wait_counts(running=1, blocked=10, scheduled=4)
        proxy.lose_replies([script], times)
        place.touch(f"{key}-{number}")
        new = place.send_many(5, "one", f"{key}-new")
        wait_until(lambda: proxy.lost == times, f"{times} replies to {script.name} are lost")
        ids += [holder, *blocked, *new]
        place.wait_ended(*ids)
        for task_id in due:
            place.wait_runs_of(task_id, 2)
    place.wait_empty()
    assert [len(place.marks.runs_of(task_id)) for task_id in ids] == [1] * len(ids)
    assert [len(place.marks.runs_of(task_id)) for task_id in due] == [2] * len(due)
    assert largest_at_once(place.marks.runs(key)) == 1
    assert not worker.says("lease_recovered")
    assert not worker.says("lease_lost")
    assert not worker.says("stale_settle")
