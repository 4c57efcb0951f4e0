"""What ``doctor`` finds on real servers with wrong settings; nothing is a traceback, and no password is shown."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from celery_backfill.deadletters import doctor as deadletters
from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.migrate import migrate
from celery_backfill.deadletters.store import Letters
from celery_backfill.findings import Finding
from celery_backfill.leases.doctor import examine
from tests.servers import Serve, as_user, serving
from tests.store.entries import failure
from tests.waiting import wait_until

PASSWORD = "hunter2"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with serving(tmp_path) as serve:
        yield serve


def looked_at(url: str, **how: Any) -> dict[str, Finding]:
    found = examine(url, "shop", **{"lease_seconds": 15.0, **how})
    assert PASSWORD not in repr(found)  # X6
    return {finding.name: finding for finding in found}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """Those that are not ok."""
    return {name: finding.level for name, finding in found.items() if finding.level != "ok"}


def client(url: str) -> Any:
    return redis.Redis.from_url(url)


# Redis


def test_a_server_as_it_should_be(redis_url: str) -> None:
    found = looked_at(redis_url)
    assert levels(found) == {}
    assert {"redis", "redis_version", "redis_scripts", "redis_rights", "redis_persistence", "redis_clock"} <= set(found)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_an_evicting_policy_is_an_error(serve: Serve, policy: str) -> None:  # C21
    url = serve(f"maxmemory-policy {policy}")
    found = looked_at(url)
    assert levels(found) == {"redis_eviction": "error"}
    assert policy in found["redis_eviction"].text
    assert "CONFIG SET maxmemory-policy noeviction" in found["redis_eviction"].advice
    client(url).config_set("maxmemory-policy", "noeviction")
    assert levels(looked_at(url)) == {}


def test_without_the_append_only_file_it_says_what_a_restart_loses(serve: Serve) -> None:  # C21, F26
    url = serve("appendonly no")
    found = looked_at(url)
    assert levels(found) == {"redis_persistence": "warning"}
    assert "blocked, scheduled, waiting for a retry or not yet shipped" in found["redis_persistence"].text
    assert "snapshot" not in found["redis_persistence"].text
    client(url).config_set("save", "60 1")
    assert "since the last snapshot" in looked_at(url)["redis_persistence"].text


def test_memory_that_is_nearly_full_and_full(serve: Serve) -> None:  # F28
    url = serve()
    client(url).set("much", b"x" * 2**25)
    client(url).config_set("maxmemory", int(client(url).info("memory")["used_memory"] * 1.06))
    assert levels(looked_at(url)) == {"redis_memory": "warning"}
    client(url).config_set("maxmemory", 1)
    found = looked_at(url)
    assert levels(found) == {"redis_memory": "warning", "redis_scripts": "error"}
    assert "new tasks are refused" in found["redis_scripts"].text


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("~*", "+@all", "-@scripting"), "scripts are forbidden"),
        (("~*", "+@all", "-xadd", "-hdel"), "HDEL, XADD on {shop}:*"),
        (("~*", "+@all", "-xgroup"), "XGROUP on {shop}:*"),
        (("~{other}:*", "+@all"), "scripts are forbidden"),
        (("~{shop}:*", "+@all"), "ZREM on index; HGET, HDEL on unacked"),
    ],
)
def test_what_an_access_list_forbids_is_named_and_the_advice_mends_it(
    serve: Serve, rules: tuple[str, ...], words: str
) -> None:
    url = serve()
    client(url).execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", *rules)
    own = {"broker_keys": ("index", "unacked")}
    found = looked_at(as_user(url, "ann", PASSWORD), **own)
    assert levels(found)["redis_rights"] == "error"
    assert words in found["redis_rights"].text
    client(url).execute_command("ACL", "SETUSER", "ann", "reset", "on", f">{PASSWORD}")
    client(url).execute_command(*found["redis_rights"].advice.split())
    found = looked_at(as_user(url, "ann", PASSWORD), **own)
    assert found["redis_rights"].level == "ok", found["redis_rights"]
    assert levels(found) == {"redis_config": "info"}


def test_a_user_who_may_not_read_info_is_told_what_to_check_by_hand(serve: Serve) -> None:
    url = serve()
    client(url).execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "+@all", "-info", "-time")
    found = looked_at(as_user(url, "ann", PASSWORD))
    assert levels(found) == {
        "redis_rights": "error",
        "redis_version": "warning",
        "redis_persistence": "warning",
        "redis_eviction": "warning",
        "redis_memory": "warning",
        "redis_replication": "warning",
        "redis_cluster": "warning",
        "redis_clock": "warning",
    }
    assert "check by hand: maxmemory-policy noeviction" in found["redis_eviction"].text
    client(url).execute_command("ACL", "SETUSER", "ann", "+time")
    assert looked_at(as_user(url, "ann", PASSWORD))["redis_rights"].level == "warning"


def test_config_that_is_not_there_is_no_trouble(serve: Serve) -> None:
    found = looked_at(serve('rename-command CONFIG ""', "appendonly no"))
    assert levels(found) == {"redis_config": "info", "redis_persistence": "warning"}
    assert "check by hand: CONFIG GET save" in found["redis_config"].text


def test_a_server_without_scripts(serve: Serve) -> None:
    found = looked_at(serve('rename-command EVALSHA ""'))
    assert levels(found) == {"redis_scripts": "error"}
    assert "unknown command" in found["redis_scripts"].text


def test_a_wrong_password(serve: Serve) -> None:  # X6
    found = looked_at(as_user(serve(), "", PASSWORD))
    assert levels(found) == {"redis": "error"}
    assert "check the user and password" in found["redis"].advice


@pytest.mark.parametrize(
    "url",
    [
        f"redis://ann:{PASSWORD}@127.0.0.1:1/3?password={PASSWORD}",
        f"redis://:{PASSWORD}/x@127.0.0.1:1",
        f"redis://:1/{PASSWORD}@127.0.0.1:1",
        f"redis://ann:1#{PASSWORD}@127.0.0.1:1",
        f"redis://[{PASSWORD}",
        f"rediss://:{PASSWORD}@127.0.0.1:1",
        "unix:///nowhere/redis.sock",
    ],
)
def test_a_server_that_is_not_there(url: str) -> None:  # X6
    assert levels(looked_at(url)) == {"redis": "error"}


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = looked_at(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
    assert levels(found) == {"redis": "error"}
    assert "does not answer" in found["redis"].text


def test_a_replica_and_its_primary(serve: Serve) -> None:
    primary, replica = serve("repl-diskless-sync-delay 0"), serve()
    at = urlsplit(primary)
    client(replica).config_set("masterauth", at.password)
    client(replica).replicaof(at.hostname, at.port)
    wait_until(lambda: client(primary).info("replication")["connected_slaves"], "the replica is connected")
    found = looked_at(replica)
    assert found["redis_replication"].level == "error"
    assert f"a replica of {at.hostname}:{at.port}" in found["redis_replication"].text
    assert levels(looked_at(primary)) == {"redis_replication": "info"}
    client(primary).config_set("min-replicas-to-write", 1)
    wait_until(lambda: levels(looked_at(primary)) == {}, "the replica is good enough")


def test_a_cluster_says_that_workers_do_not_follow(serve: Serve) -> None:
    first, second = (serve("cluster-enabled yes", "cluster-node-timeout 300") for _ in range(2))
    client(first).execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_until(lambda: levels(looked_at(first)) == {"redis_cluster": "warning"}, "the cluster serves")
    at = urlsplit(first)
    client(second).cluster("meet", at.hostname, at.port)
    wait_until(lambda: levels(looked_at(second)) == {"redis_cluster": "error"}, "the second node knows whose they are")
    found = looked_at(second)["redis_cluster"]
    assert found.text == f"the keys of 'shop' live on {at.hostname}:{at.port}, and workers do not follow there"


def test_failures_that_wait_for_long(redis_url: str, namespace: str) -> None:
    client(redis_url).xadd(f"{{{namespace}}}:outbox", {"kind": "failed"}, id="1700000000000-0")
    (found,) = [f for f in examine(redis_url, namespace, lease_seconds=15.0) if f.name == "outbox"]
    assert (found.level, found.text.startswith("1 failures wait")) == ("warning", True)


# PostgreSQL


def letters_at(url: str) -> dict[str, Finding]:
    found = deadletters.examine(url)
    assert PASSWORD not in repr(found)  # X6
    return {finding.name: finding for finding in found}


@pytest.fixture
def role(postgres_url: str) -> Iterator[str]:
    """The URL of a user of the database who owns nothing."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), PASSWORD))
        yield as_user(postgres_url, name, PASSWORD)
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_database_before_and_after_its_migration(postgres_url: str) -> None:  # C21
    found = letters_at(postgres_url)
    assert levels(found) == {"postgres_tables": "error"}
    assert found["postgres_tables"].advice == "run: celery -A proj backfill migrate"
    migrate(OneConnection(postgres_url))
    found = letters_at(postgres_url)
    assert levels(found) == {}
    assert {"postgres", "postgres_version", "postgres_tables", "postgres_rights"} == set(found)


def test_a_user_who_may_not_make_the_tables(role: str) -> None:
    assert "as a user who may create tables in the schema public" in letters_at(role)["postgres_tables"].advice


def test_rights_that_are_missing_are_named_and_the_advice_mends_it(postgres_url: str, role: str) -> None:
    migrate(OneConnection(postgres_url))
    found = letters_at(role)
    assert levels(found) == {"postgres_tables": "info", "postgres_rights": "error"}
    assert "SELECT, INSERT, UPDATE on backfill_letters" in found["postgres_rights"].text
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(found["postgres_rights"].advice.replace("...", str(urlsplit(role).username)))
    assert levels(letters_at(role)) == {"postgres_tables": "info"}
    letters = Letters.at(role)
    assert letters.record([failure("t-1")])
    assert letters.get("t-1")


def test_a_database_that_takes_no_writes(postgres_url: str) -> None:
    migrate(OneConnection(postgres_url))
    more = "&" if "?" in postgres_url else "?"
    found = letters_at(f"{postgres_url}{more}options=-cdefault_transaction_read_only%3Don")
    assert levels(found) == {"postgres": "error"}
    assert "takes no writes" in found["postgres"].text


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{PASSWORD}@127.0.0.1:1/app?sslpassword={PASSWORD}",
        f"postgresql://ann:{PASSWORD}%zz@127.0.0.1/app",
        f"postgresql://ann:1@{PASSWORD}@127.0.0.1:1/app",
        f"postgresql://ann:1/{PASSWORD}@127.0.0.1:1/app",
    ],
)
def test_a_database_that_is_not_there(url: str) -> None:  # X6
    assert levels(letters_at(url)) == {"postgres": "error"}


def test_a_wrong_password_for_postgresql(postgres_url: str) -> None:  # X6
    found = letters_at(as_user(postgres_url, "nobody_at_all", PASSWORD))
    assert levels(found) == {"postgres": "error"}
