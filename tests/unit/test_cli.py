"""The command line: what programs read, what people read, and what nobody may read."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import redis
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery as celery_command
from click.testing import CliRunner, Result

import celery_backfill.cli
from celery_backfill.cli import backfill
from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.migrate import migrate
from celery_backfill.deadletters.requeue import Outcome, Requeue
from celery_backfill.deadletters.store import Letters
from celery_backfill.errors import LettersUnavailableError
from celery_backfill.leases.inspect import Inspector, LeaseView, LimitView
from celery_backfill.message import Envelope
from tests.store.entries import failure, message

FIELDS = {
    "id",
    "task_id",
    "task",
    "queue",
    "state",
    "reason",
    "exception_type",
    "exception_message",
    "retries",
    "failure_count",
    "requeue_count",
    "group",
    "first_failed_at",
    "last_failed_at",
}


@pytest.fixture
def app(redis_url: str, postgres_url: str, namespace: str) -> Iterator[Celery]:
    app = Celery("shop", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=f"{namespace}-orders",
        backfill_redis_url=redis_url,
        backfill_postgres_url=postgres_url,
        backfill_namespace=namespace,
    )
    yield app
    app.close()


@pytest.fixture
def letters(postgres_url: str) -> Letters:
    migrate(OneConnection(postgres_url))
    return Letters.at(postgres_url)


def run(app: Celery, *arguments: str, given: str | None = None) -> Result:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(backfill, arguments, obj=context, input=given)


def answer(app: Celery, *arguments: str) -> Any:
    result = run(app, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def id_of(letters: Letters, task_id: str) -> int:
    letter = letters.get(task_id)
    assert letter is not None
    return letter.id


def commands(group: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, *path, name)


def test_celerys_start_imports_nothing_but_click() -> None:
    tree = ast.parse(inspect.getsource(celery_backfill.cli))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert modules == {"__future__", "importlib", "click"}
    program = "import sys, celery_backfill.cli; print([name for name in ('psycopg', 'rich') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_commands_help_has_an_example() -> None:
    leaves = [(path, command) for path, command in commands(backfill) if not isinstance(command, click.Group)]
    assert {" ".join(path) for path, _ in leaves} == {
        "migrate",
        "doctor",
        "dlq list",
        "dlq show",
        "dlq groups",
        "dlq requeue",
        "dlq discard",
        "limits list",
        "leases list",
    }
    for path, command in leaves:
        assert f"celery -A proj backfill {' '.join(path)}" in (command.help or ""), path
        assert any("--json" in option.opts for option in command.params), path


def test_it_runs_under_celerys_own_command(app: Celery, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery.bin.celery.find_app", lambda _: app)
    monkeypatch.setitem(celery_command.commands, "backfill", backfill)
    result = CliRunner().invoke(celery_command, ["-A", "shop", "backfill", "dlq", "list", "--json"])
    assert (result.exit_code, result.stdout.strip()) == (0, "[]"), result.output


def test_an_apps_own_global_options_do_no_harm() -> None:
    """Celery gives an app's ``user_options["preload"]`` to every command as keywords."""
    assert backfill.callback is not None
    assert backfill.callback(template="plain") is None


def test_migrate_says_what_it_did(app: Celery) -> None:
    assert answer(app, "migrate") == {"applied": ["0001_letters_and_failures"]}
    assert answer(app, "migrate") == {"applied": []}


def test_list_has_the_contracts_fields(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1"), failure("t-2", at=1_700_000_060_000)])
    rows = answer(app, "dlq", "list")
    assert [row["task_id"] for row in rows] == ["t-2", "t-1"]
    assert set(rows[0]) >= FIELDS
    assert rows[0]["last_failed_at"] == "2023-11-14T22:14:20+00:00"
    assert isinstance(rows[0]["id"], int)


def test_list_filters(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1"), failure("t-2", task="shop.refund", exception_type="builtins.KeyError")])
    group = answer(app, "dlq", "list", "--task", "shop.charge")[0]["group"]
    for given, expected in (
        (("--task", "shop.refund"), ["t-2"]),
        (("--queue", "nowhere"), []),
        (("--error", "KeyError"), ["t-2"]),
        (("--group", group), ["t-1"]),
        (("--reason", "poison"), []),
        (("--state", "resolved", "--state", "discarded"), []),
        (("--since", "2023-11-14T22:13:20"), ["t-2", "t-1"]),
        (("--since", "1h"), []),
        (("--until", "2023-11-14T22:13:20+00:00"), []),
        (("--search", "REFUND"), ["t-2"]),
        (("--limit", "1"), ["t-2"]),
    ):
        assert [row["task_id"] for row in answer(app, "dlq", "list", *given)] == expected, given


def test_a_time_that_is_none_says_what_to_write(app: Celery) -> None:
    result = run(app, "dlq", "list", "--since", "yesterday")
    assert result.exit_code == 2
    assert "write 30m, 12h, 7d" in result.stderr


def test_a_table_is_aligned_and_harmless(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1", exception_message="\x1b[2Jgone\r\nnext")])
    result = run(app, "dlq", "list")
    heading, row = result.stdout.splitlines()
    assert heading.index("state") == row.index("dead")
    assert "\x1b" not in result.stdout
    assert run(app, "dlq", "list", "--task", "none").stdout == "no dead letters match\n"


def test_groups(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1", exception_message="amount 1"), failure("t-2", exception_message="amount 2")])
    (group,) = answer(app, "dlq", "groups")
    assert (group["count"], group["task"], group["exception_type"]) == (2, "shop.charge", "ValueError")
    assert "amount" in run(app, "dlq", "groups").stdout


def test_show_has_everything(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1"), failure("t-1", at=1_700_000_060_000, exception_message="again")])
    shown = answer(app, "dlq", "show", "t-1")
    assert set(shown) >= FIELDS | {"args", "kwargs", "headers", "traceback", "failures"}
    assert (shown["args"], shown["kwargs"]) == ([7, 100], {"currency": "EUR"})
    assert shown["headers"]["task"] == "shop.charge"
    assert "shop/billing.py" in shown["traceback"]
    assert [past["exception_message"] for past in shown["failures"]] == ["again", "amount 12"]
    assert answer(app, "dlq", "show", str(shown["id"])) == shown
    text = run(app, "dlq", "show", "t-1").stdout
    assert "ValueError: amount 12" in text
    assert "[7, 100]" in text


def test_secrets_are_not_shown(app: Celery, letters: Letters) -> None:  # D12
    @app.task(name="shop.charge")
    def charge(card_token: str, amount: int, **more: Any) -> None: ...

    kwargs = {"more": {"deep": [{"Api-Password": "s3cret"}]}, "client_secret": "s3cret"}
    body = json.dumps([["s3cret", 100], kwargs, {}]).encode()
    headers = {"Authorization": "s3cret", "argsrepr": "('s3cret', 100)", "kwargsrepr": "{'client_secret': 's3cret'}"}
    headers["stamps"] = {"token": ["s3cret"]}
    letters.record([failure("t-1", envelope=message(body=body, headers=headers))])
    for output in (run(app, "dlq", "show", "t-1").output, run(app, "dlq", "show", "t-1", "--json").output):
        assert "s3cret" not in output
        assert "[hidden]" in output
    assert answer(app, "dlq", "show", "t-1")["args"] == ["[hidden]", 100]
    assert b"s3cret" in Envelope.decode(letters.message(id_of(letters, "t-1")) or b"").body


class Bomb:
    """Unpickled, it would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_pickle_is_never_loaded(app: Celery, letters: Letters, tmp_path: Any) -> None:  # X1
    mark = tmp_path / "loaded"
    body = pickle.dumps([[Bomb(str(mark))], {}, {}])
    for number, content_type in enumerate(("application/x-python-serialize", "application/json")):
        letters.record([failure(f"t-{number}", envelope=message(body=body, content_type=content_type))])
        shown = answer(app, "dlq", "show", f"t-{number}")
        assert (shown["args"], shown["kwargs"]) == (None, None)
        assert shown["note"]
    assert not mark.exists()


def test_show_of_an_unknown_letter_says_where_to_look(app: Celery, letters: Letters) -> None:
    result = run(app, "dlq", "show", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.strip().endswith("list them with: celery -A proj backfill dlq list")


def test_requeue_by_id_sends_and_reports(app: Celery, letters: Letters, redis_url: str) -> None:
    queue = app.conf.task_default_queue
    letters.record([failure("t-1", envelope=message("t-1", queue)), failure("t-2", envelope=message("t-2", queue))])
    report = answer(app, "dlq", "requeue", "t-1", str(id_of(letters, "t-2")))
    assert (report["requeued"], report["skipped"], report["failed"]) == (2, 0, 0)
    assert [row["task_id"] for row in report["results"]] == ["t-1", "t-2"]
    assert letters.counts()["requeued"] == 2
    with redis.Redis.from_url(redis_url) as client:
        assert sum(client.llen(key) for key in client.scan_iter(f"{queue}*", _type="list")) == 2
    again = answer(app, "dlq", "requeue", "t-1")
    assert (again["skipped"], again["results"][0]["reason"]) == (1, "it was requeued and has not ended yet")


def test_requeue_all_takes_what_the_filter_matches(app: Celery, letters: Letters) -> None:  # R9
    queue = app.conf.task_default_queue
    facts = [failure(f"t-{number}", envelope=message(f"t-{number}", queue)) for number in range(7)]
    letters.record([*facts, failure("other", task="shop.refund")])
    assert len(answer(app, "dlq", "list", "--task", "shop.charge")) == 7
    report = answer(app, "dlq", "requeue", "--all", "--task", "shop.charge", "--yes")
    assert report["requeued"] == len(report["results"]) == 7
    assert letters.counts() == {"dead": 1, "requeueing": 0, "requeued": 7, "resolved": 0, "discarded": 0}


def test_one_bad_row_stops_no_other_and_the_exit_code_says_so(app: Celery, letters: Letters) -> None:  # R4
    app.conf.task_create_missing_queues = False
    queue = app.conf.task_default_queue
    letters.record([failure("good", envelope=message("good", queue)), failure("bad", envelope=message("bad", "gone"))])
    result = run(app, "dlq", "requeue", "bad", "good", "missing", "--json")
    report = json.loads(result.stdout)
    assert (report["requeued"], report["failed"], result.exit_code) == (1, 2, 1)
    assert [row["outcome"] for row in report["results"]] == ["failed", "requeued", "failed"]
    assert "task_queues" in report["results"][0]["reason"]


@pytest.mark.parametrize("command", ["requeue", "discard"])
@pytest.mark.parametrize("given", [(), ("--task", "shop.charge"), ("1", "--all"), ("1", "--task", "x")])
def test_acting_on_many_must_be_asked_for(app: Celery, command: str, given: tuple[str, ...]) -> None:
    result = run(app, "dlq", command, *given)
    assert result.exit_code == 2
    assert "--all" in result.stderr


@pytest.mark.parametrize("command", ["requeue", "discard"])
def test_all_is_confirmed(app: Celery, letters: Letters, command: str) -> None:
    letters.record([failure("t-1")])
    result = run(app, "dlq", command, "--all", given="n\n")
    assert result.exit_code == 1
    assert f"{command} 1 dead letters?" in result.stderr
    assert letters.counts()["dead"] == 1


def test_a_dry_run_changes_nothing(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1"), failure("t-2", task="shop.refund")])
    report = answer(app, "dlq", "requeue", "--all", "--task", "shop.charge", "--dry-run")
    assert [row["task_id"] for row in report["results"]] == ["t-1"]
    assert (report["requeued"], report["dry_run"]) == (0, True)
    assert letters.counts()["dead"] == 2


def test_discard(app: Celery, letters: Letters) -> None:
    letters.record([failure("t-1"), failure("t-2", task="shop.refund"), failure("t-3")])
    assert answer(app, "dlq", "discard", "t-2")["discarded"] == 1
    report = answer(app, "dlq", "discard", "--all", "--yes")
    assert (report["discarded"], report["skipped"]) == (2, 0)
    assert answer(app, "dlq", "discard", "t-1")["skipped"] == 1


def test_postgresql_going_away_amid_a_bulk_is_reported_row_by_row(
    app: Celery, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def once(_: Any, letter_id: int) -> Outcome:
        if sent:
            raise LettersUnavailableError("connection refused")
        sent.append(letter_id)
        return Outcome(letter_id, "t-1", "requeued")

    letters.record([failure("t-1"), failure("t-2"), failure("t-3")])
    monkeypatch.setattr(Requeue, "requeue", once)
    result = run(app, "dlq", "requeue", "--all", "--yes", "--json")
    report = json.loads(result.stdout)
    assert [row["outcome"] for row in report["results"]] == ["requeued", "failed", "skipped"]
    assert result.exit_code == 1


def test_limits_and_leases_of_an_empty_store(app: Celery) -> None:
    assert answer(app, "limits", "list") == []
    assert answer(app, "leases", "list") == []
    assert run(app, "limits", "list").stdout == "no key is held or waited for\n"
    assert run(app, "leases", "list").stdout == "nothing is running\n"


def test_limits_and_leases_have_the_contracts_fields(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = LimitView("tenant:7", 2, 2, 5, 1.25, False)
    lease = LeaseView("t-1", "shop.charge", "celery@one", ("tenant:7", "stripe"), 2**60, 3.5, 11.5)
    monkeypatch.setattr(Inspector, "limits", lambda _: [limit])
    monkeypatch.setattr(Inspector, "leases", lambda _: [lease])
    (row,) = answer(app, "limits", "list")
    assert set(row) == {"key", "capacity", "held", "blocked", "oldest_blocked_seconds", "paused"}
    (row,) = answer(app, "leases", "list")
    assert set(row) == {"task_id", "task", "worker", "keys", "token", "age_seconds", "expires_in_seconds"}
    assert row["keys"] == ["tenant:7", "stripe"]
    assert "tenant:7, stripe" in run(app, "leases", "list").stdout


def one_line(result: Result) -> str:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    return line


def test_errors_are_one_line_that_says_what_to_do(app: Celery) -> None:
    assert "run: celery -A proj backfill migrate" in one_line(run(app, "dlq", "list"))
    app.conf.backfill_lease_seconds = 1
    assert "backfill_lease_seconds" in one_line(run(app, "dlq", "list"))


@pytest.mark.parametrize("command", [("dlq", "list"), ("migrate",), ("dlq", "requeue", "1")])
def test_postgresql_away_names_the_place_but_no_password(app: Celery, command: tuple[str, ...]) -> None:  # X6
    app.conf.backfill_postgres_url = "postgresql://ann:hunter2@127.0.0.1:1/app?sslpassword=hunter2"
    line = one_line(run(app, *command))
    assert "postgresql://ann@127.0.0.1:1/app" in line
    assert "hunter2" not in line
    app.conf.backfill_postgres_url = "postgresql://ann:hunter2%zz@127.0.0.1/app"
    assert "hunter2" not in one_line(run(app, *command))


@pytest.mark.parametrize("command", ["limits", "leases"])
def test_redis_away_names_the_place_but_no_password(app: Celery, command: str) -> None:  # X6
    app.conf.backfill_redis_url = "redis://ann:hunter2@127.0.0.1:1/3?password=hunter2"
    line = one_line(run(app, command, "list"))
    assert "redis://127.0.0.1:1/3" in line
    assert "hunter2" not in line
