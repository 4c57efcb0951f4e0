"""The parts of the chaos runs do what they say, on real servers: what a store did is read, and ways fail as told."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.decisions import Decisions
from tests.chaos.deliveries import Deliveries
from tests.chaos.proxy import Network, Proxy
from tests.chaos.server import Server
from tests.waiting import wait_until

P = "{n}:"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    own = Server(tmp_path / "server")
    yield own
    own.stop()


@pytest.fixture
def way(server: Server) -> Iterator[Proxy]:
    network = Network()
    yield network.proxy_to(server.address)
    network.close()


@pytest.fixture
def client(way: Proxy) -> Iterator[Any]:
    """Over the proxy; tries nothing twice."""
    own = redis.Redis(port=way.port, socket_timeout=1, retry=None)
    yield own
    own.close()


def _grant(server: Server, task: str, token: int, key: str = "k", capacity: int = 1) -> None:
    with server.client.pipeline() as pipe:
        limits = json.dumps([[key, capacity]])
        pipe.hset(f"{P}a:{task}@q", mapping={"task_id": task, "token": token, "state": "running", "limits": limits})
        pipe.sadd(f"{P}h:{key}", f"{task}@q")
        pipe.execute()


def _settle(server: Server, task: str, token: int, *, dead: bool = False, key: str = "k") -> None:
    with server.client.pipeline() as pipe:
        pipe.srem(f"{P}h:{key}", f"{task}@q")
        if dead:
            pipe.xadd(f"{P}outbox", {"kind": "failed", "id": f"{task}@q:{token}"})
        pipe.delete(f"{P}a:{task}@q")
        pipe.execute()


def test_decisions_are_read_across_a_kill_and_a_loss_of_data(server: Server) -> None:
    _grant(server, "done", 1)
    _settle(server, "done", 1)
    _grant(server, "dead", 2)
    _settle(server, "dead", 2, dead=True)
    server.kill()
    server.start()
    _grant(server, "running", 3)
    server.client.hset(f"{P}a:waiting@q", mapping={"task_id": "waiting", "state": "blocked", "token": ""})
    server.kill()
    server.start(keep_data=False)
    assert server.client.dbsize() == 0
    _grant(server, "running", 3)
    _settle(server, "running", 3)
    decisions = Decisions.read(server.eras, "n")
    assert [astuple(one) for one in decisions.settled] == [
        ("done", 1, False, 0), ("dead", 2, True, 0), ("running", 3, False, 1),
    ]  # fmt: skip
    assert decisions.admitted == {"done", "dead", "running", "waiting"}
    (loss,) = decisions.losses
    assert loss.running == {"running": 3}
    # A letter that had not been recorded yet is lost as well.
    assert loss.waiting == {"waiting", "dead"}
    assert decisions.tokens_back == []
    assert decisions.over_limit == {}


def test_what_ended_twice_is_put_down_to_lost_data_only_if_it_ended_before_and_after(server: Server) -> None:
    """The memory that it had ended was lost, so its message was taken for a new one."""
    for task, token in (("before and after", 1), ("twice before", 2), ("twice before", 3), ("adopted", 4)):
        _grant(server, task, token)
        _settle(server, task, token)
    server.kill()
    server.start(keep_data=False)
    for task, token in (("before and after", 5), ("adopted", 4)):
        _grant(server, task, token)
        _settle(server, task, token)
    decisions = Decisions.read(server.eras, "n")
    assert decisions.forgotten("before and after") is decisions.losses[0]
    assert decisions.forgotten("twice before") is None
    assert decisions.forgotten("adopted") is None


def test_a_token_that_goes_back_and_permits_over_the_limit_are_seen(server: Server) -> None:
    _grant(server, "a", 5)
    _grant(server, "b", 4)
    # A server whose disk is busy writes its file a moment after it has answered.
    wait_until(lambda: Decisions.read(server.eras, "n").tokens_back, "the file has both")
    decisions = Decisions.read(server.eras, "n")
    assert len(decisions.tokens_back) == 1
    assert decisions.over_limit == {"k": 2}


def test_a_message_that_kombu_loses_is_told_from_others(server: Server) -> None:
    """Kombu#305: taken from the list, and never written to unacked."""
    for name in ("lost", "acked", "unacked", "queued"):
        server.client.lpush("q", json.dumps({"headers": {"id": name}}))
    for name in ("lost", "acked", "unacked"):
        payload = server.client.brpop("q")[1]
        if name != "lost":
            server.client.hset("unacked", f"tag-{name}", json.dumps([json.loads(payload), "", "q"]))
    server.client.hdel("unacked", "tag-acked")
    before = Deliveries.read(server.eras, "q")
    assert [name for name in before.where if before.never_delivered(name)] == ["lost"]
    assert before.lost_with_data == {}
    server.kill()
    server.start(keep_data=False)
    assert set(Deliveries.read(server.eras, "q").lost_with_data) == {"lost", "unacked", "queued"}


def test_a_cut_way_refuses_until_it_is_healed(way: Proxy, client: Any) -> None:
    assert client.ping()
    way.cut()
    with pytest.raises((redis.RedisError, OSError)):
        client.ping()
    way.heal()
    assert client.ping()


def test_what_is_sent_over_a_silent_way_arrives_late(way: Proxy, client: Any, server: Server) -> None:
    assert client.ping()
    way.silence()
    with pytest.raises(redis.TimeoutError):
        client.incr("late")
    assert server.client.get("late") is None
    way.heal()
    wait_until(lambda: server.client.get("late") == b"1", "it has arrived")


def test_lost_replies_are_those_of_scripts(way: Proxy, client: Any, server: Server) -> None:
    digest = client.script_load("return redis.call('INCR', KEYS[1])")
    way.lose_replies(1.0, random.Random(1))
    assert client.ping()
    with pytest.raises((redis.RedisError, OSError)):
        client.evalsha(digest, 1, "count")
    way.heal()
    assert way.lost == 1
    assert server.client.get("count") == b"1"


def test_a_frozen_server_answers_when_it_is_thawed(server: Server) -> None:
    impatient = redis.Redis(port=server.address[1], socket_timeout=0.3, retry=None)
    server.freeze()
    began = time.monotonic()
    with pytest.raises(redis.TimeoutError):
        impatient.ping()
    assert time.monotonic() - began >= 0.3
    server.thaw()
    assert impatient.ping()
    impatient.close()
