"""What a worker says at its start of servers that are not as they should be; it starts all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from celery_backfill.leases.doctor import access_rule
from tests.servers import Serve, as_user, serving
from tests.worker.place import Opener, Place

PASSWORD = "hunter2"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with serving(tmp_path) as serve:
        yield serve


def run_one(place: Place, key: str) -> None:
    place.wait_ended(place.send("one", key))
    place.wait_empty()


def test_servers_with_wrong_settings_are_in_the_log_with_advice(
    serve: Serve, open_place: Opener, key: str
) -> None:  # C21, F13, X6
    store = serve("maxmemory-policy allkeys-lru", "appendonly no")
    place = open_place(store_url=store)
    worker = place.worker(concurrency=1)
    for words in ("check=redis_eviction", "CONFIG SET maxmemory-policy noeviction", "check=redis_persistence"):
        assert worker.says(words)
    assert worker.says("without a meaning for leased tasks: task_acks_late")
    assert not worker.says(str(urlsplit(store).password))
    run_one(place, key)


def test_a_store_that_is_away_at_the_start_is_told_and_work_flows_when_it_is_back(
    serve: Serve, open_place: Opener, key: str
) -> None:
    store = serve()
    place = open_place(store_url=store)
    serve.started[0].stop()
    worker = place.worker(concurrency=1)
    assert worker.says("check=redis found=redis://127.0.0.1")
    assert not worker.says(str(urlsplit(store).password))
    assert serve.started[0].join() == store
    run_one(place, key)


def test_the_rights_that_the_doctor_advises_are_enough_for_a_worker(serve: Serve, open_place: Opener, key: str) -> None:
    store = serve()
    place = open_place(store_url=store)
    with redis.Redis.from_url(store) as admin:
        admin.execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}")
        admin.execute_command(*access_rule("ann", place.namespace).split())
    place.worker(concurrency=1, conf={"backfill_redis_url": as_user(store, "ann", PASSWORD)})
    failing = place.send("ending", key, "raise")
    run_one(place, key)
    place.wait_letter(failing)
    with redis.Redis.from_url(store) as admin:
        refused = {entry["object"] for entry in admin.acl_log()}
    assert refused <= {"config|get"}, "only the doctor asks for more, and does without"
