"""What an app's declarations and a server's facts mean, and the command that prints it all."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from redis.exceptions import ResponseError

from celery_backfill.cli import backfill
from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.doctor import migrated, version
from celery_backfill.deadletters.migrate import migrate
from celery_backfill.doctor import examine, start_findings
from celery_backfill.findings import Finding, is_ambiguous
from celery_backfill.leases.diagnosis import Facts, Probe, judge
from celery_backfill.settings import Settings

#: What Redis 6.2.5 says of itself, and of a script of ours.
REDIS_6 = {"redis_version": "6.2.5", "aof_enabled": 1, "maxmemory_policy": "noeviction", "role": "master"}
REDIS_6_REFUSES = ResponseError("Error compiling script (new function): user_script:1: unexpected symbol near '#'")

FACTS = Facts(
    place="redis://localhost",
    namespace="shop",
    access_rule="ACL SETUSER default",
    round_trip=0.001,
    ahead=0.0,
    info={**REDIS_6, "redis_version": "7.0.15"},
    config={},
    probe=Probe("1f", ()),
    waiting=0,
    oldest_ms=None,
)


def judged(**facts: Any) -> dict[str, Finding]:
    """The findings that are not ok."""
    found = judge(replace(FACTS, **facts), 15.0, 1_700_000_000.0)
    return {finding.name: finding for finding in found if finding.level != "ok"}


# A server's facts


def test_nothing_is_wrong_with_a_plain_server() -> None:
    assert judged() == {}


def test_a_server_that_is_too_old_can_never_work() -> None:
    found = judged(info=REDIS_6, probe=REDIS_6_REFUSES)
    assert {name: finding.fatal for name, finding in found.items()} == {"redis_version": True, "redis_scripts": True}
    assert judged(info=ResponseError("no"), probe=REDIS_6_REFUSES)["redis_scripts"].fatal
    assert judged(info={**REDIS_6, "valkey_version": "7.2.5"}) == {}
    assert judged(info={})["redis_version"].level == "warning"


@pytest.mark.parametrize(
    ("ahead", "round_trip", "level"),
    [
        (1.1, 0.0, "warning"),
        (-4.9, 0.0, "warning"),
        (5.1, 0.0, "error"),
        (-60.0, 0.0, "error"),
        (5.04, 0.09, "warning"),
    ],
)
def test_clocks_that_differ(ahead: float, round_trip: float, level: str) -> None:
    found = judged(ahead=ahead, round_trip=round_trip)["redis_clock"]
    assert found.level == level
    assert ("ahead of" if ahead > 0 else "behind") in found.text
    assert "leases go by the server's clock only" in found.advice


def test_clocks_that_agree_as_far_as_one_can_tell() -> None:
    assert judged(ahead=0.9) == judged(ahead=-1.04, round_trip=0.09) == {}


def test_a_server_that_is_far_away() -> None:
    assert judged(round_trip=0.15)["redis"].level == "warning"


def test_a_disk_that_fails() -> None:
    found = judged(info={**REDIS_6, "redis_version": "7.0.15", "aof_last_write_status": "err"})
    assert found["redis_persistence"].level == "error"


def test_a_sentinel_is_no_store() -> None:
    found = judged(info={"redis_version": "7.0.15", "redis_mode": "sentinel"})
    assert "Sentinel" in found["redis_replication"].text


def test_versions_of_postgresql_and_of_the_tables() -> None:
    assert version(180006) == Finding("postgres_version", "ok", "PostgreSQL 18.6")
    assert version(120022).level == "error"
    assert (migrated({1}).level, migrated(set()).advice) == ("ok", "run: celery -A proj backfill migrate")
    assert "newer version of celery_backfill (migration 9999)" in migrated({1, 9999}).text


@pytest.mark.parametrize(
    ("url", "ambiguous"),
    [
        ("redis://ann:pw@localhost:6379/0", False),
        ("unix://ann:pw@/run/redis.sock?db=1", False),
        ("postgresql:///app?host=/run", False),
        ("redis://ann:p@w@localhost", True),
        ("redis://ann:p/w@localhost", True),
        ("redis://ann:1/w@localhost", True),
        ("redis://ann:1?w@localhost", True),
        ("redis://ann:1#w@localhost", True),
        ("redis://[ann:w@localhost", True),
    ],
)
def test_a_password_that_was_not_escaped_is_seen(url: str, ambiguous: bool) -> None:  # X6
    assert is_ambiguous(url) is ambiguous


# An app


def nothing() -> None: ...


@pytest.fixture
def app(redis_url: str, postgres_url: str, namespace: str) -> Iterator[Celery]:
    app = Celery("shop", broker=redis_url, task_cls="celery_backfill:BackfillTask", set_as_current=False)
    app.conf.update(backfill_postgres_url=postgres_url, backfill_namespace=namespace)
    # Celery shares tasks with every app of the process, those of other tests too.
    for name in [name for name in app.tasks if not name.startswith("celery.")]:
        del app.tasks[name]
    app.task(shared=False, name="shop.charge")(nothing)
    migrate(OneConnection(postgres_url))
    yield app
    app.close()


def found_in(app: Celery) -> dict[str, list[Finding]]:
    """The findings that are not ok."""
    found: dict[str, list[Finding]] = {}
    for finding in examine(app):
        if finding.level != "ok":
            found.setdefault(finding.name, []).append(finding)
    return found


def test_an_app_as_it_should_be(app: Celery) -> None:
    assert found_in(app) == {}
    assert {"settings", "tasks", "broker", "prefetch", "results", "redis", "outbox", "postgres_rights"} <= {
        finding.name for finding in examine(app)
    }


def test_every_setting_that_is_wrong_is_a_finding_and_the_servers_are_still_examined(app: Celery) -> None:
    app.conf.update(backfill_lease_seconds=1, backfill_limits={"a": 0}, backfill_redis_url="http://ann:hunter2@x")
    found = found_in(app)
    assert set(found) == {"settings"}
    for name, finding in zip(("redis_url", "lease_seconds", "limits"), found["settings"], strict=True):
        assert finding.text.startswith(f"backfill_{name}")
    examined = {finding.name for finding in examine(app)}
    assert "postgres" in examined
    assert "redis" not in examined
    app.conf.backfill_postgres_url = None
    assert {finding.name for finding in examine(app)} == {"settings"}


def test_settings_that_cannot_even_be_read(app: Celery) -> None:
    app.conf.broker_url = "nothing://ann:hunter2@x"
    assert [(f.name, f.level) for f in examine(app)] == [("settings", "error")]


def test_a_task_that_cannot_work_is_named(app: Celery) -> None:
    app.task(shared=False, name="shop.half", concurrency_key="k")(nothing)
    app.task(shared=False, name="shop.zero", concurrency_key="k", concurrency_limit=0)(nothing)
    app.task(shared=False, name="shop.odd", on_conflict="explode")(nothing)
    texts = sorted(finding.text for finding in found_in(app)["tasks"])
    assert [text.split(":")[0] for text in texts] == ["task shop.half", "task shop.odd", "task shop.zero"]
    assert "must be a whole number" in texts[2]


def test_task_modules_that_cannot_be_imported(app: Celery) -> None:
    app.conf.include = ["nowhere.at.all"]
    assert "No module named 'nowhere'" in found_in(app)["tasks"][0].text


def test_tasks_that_celery_refuses(app: Celery) -> None:
    fresh = Celery("fresh", broker=app.conf.broker_url, set_as_current=False)
    fresh.conf.backfill_postgres_url = app.conf.backfill_postgres_url
    fresh.task(shared=False, name="shop.lambda")(lambda: None)
    assert "SyntaxError" in found_in(fresh)["tasks"][0].text


def test_an_app_without_a_leased_task(app: Celery) -> None:
    app.tasks["shop.charge"].leased = False
    assert "no task of this app is leased" in found_in(app)["tasks"][0].text


def test_celerys_settings_without_a_meaning_are_told(app: Celery) -> None:  # F13
    app.task(shared=False, name="shop.late", acks_late=True)(nothing)
    app.conf.update(task_reject_on_worker_lost=True, broker_transport_options={"visibility_timeout": 60})
    found = found_in(app)
    assert {name: [finding.level for finding in findings] for name, findings in found.items()} == {
        "ignored": ["info"],
        "visibility_timeout": ["info"],
    }
    assert found["ignored"][0].text.endswith("task_reject_on_worker_lost, shop.late.acks_late")


def test_what_defeats_limits_or_hoards_messages_is_a_warning(app: Celery) -> None:
    app.conf.update(task_always_eager=True, worker_prefetch_multiplier=0)
    assert {name: findings[0].level for name, findings in found_in(app).items()} == {
        "eager": "warning",
        "prefetch": "warning",
    }


# A worker's start


def test_a_start_has_nothing_to_say_of_what_is_well(app: Celery) -> None:
    assert start_findings(app, Settings.of(app)) == []


def test_a_start_waits_for_no_server(app: Celery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        app.conf.update(
            backfill_redis_url=f"redis://:hunter2@127.0.0.1:{port}/0",
            backfill_postgres_url=f"postgresql://ann:hunter2@127.0.0.1:{port}/app",
        )
        began = monotonic()
        found = start_findings(app, Settings.of(app), seconds=0.5)
        assert monotonic() - began < 3.0
    assert [(finding.name, finding.level) for finding in found] == [("redis", "error"), ("postgres", "error")]
    assert not any(finding.fatal for finding in found)
    assert "hunter2" not in repr(found)


# The command


def run(app: Celery, *options: str) -> Result:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(backfill, ["doctor", *options], obj=context)


def test_the_command_says_ok(app: Celery) -> None:
    result = run(app, "--strict")
    assert result.exit_code == 0, result.output
    assert "ok       redis_eviction " in result.stdout
    assert result.stdout.splitlines()[-1].endswith(" ok")


def test_warnings_fail_only_when_asked(app: Celery) -> None:
    app.conf.worker_prefetch_multiplier = 0
    assert (run(app).exit_code, run(app, "--strict").exit_code) == (0, 1)
    app.conf.backfill_redis_url = "redis://ann:hunter2@127.0.0.1:1/3"
    assert run(app).exit_code == 1


def test_json_has_the_counts_and_the_findings(app: Celery) -> None:
    app.conf.worker_prefetch_multiplier = 0
    answer = json.loads(run(app, "--json").stdout)
    assert (answer["error"], answer["warning"], answer["info"]) == (0, 1, 0)
    assert answer["ok"] == len(answer["findings"]) - 1
    (finding,) = [finding for finding in answer["findings"] if finding["level"] == "warning"]
    assert set(finding) == {"name", "level", "text", "advice"}


def test_servers_that_are_away_are_findings_without_passwords(app: Celery) -> None:  # X6
    app.conf.backfill_redis_url = "redis://ann:hunter2@127.0.0.1:1/3"
    app.conf.backfill_postgres_url = "postgresql://ann:hunter2@127.0.0.1:1/app"
    for options in ((), ("--json",)):
        result = run(app, *options)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert "redis://127.0.0.1:1/3 does not answer" in result.stdout
        assert "postgresql://ann@127.0.0.1:1/app cannot be used" in result.stdout
        assert "hunter2" not in result.output
    *_, advice, _ = run(app).stdout.splitlines()
    assert advice.strip().startswith("-> failures wait in Redis meanwhile")


def test_what_it_prints_cannot_steer_a_terminal(app: Celery) -> None:
    app.task(shared=False, name="shop.\x08", on_conflict="explode")(nothing)
    assert "\x08" not in run(app).stdout
