"""Who may be declared dead, with real processes that are stopped, killed, forked and hidden (F25)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import psutil
import pytest

from celery_backfill.worker.witness import Presence, Witness
from tests.unit.lone_worker import LoneWorker
from tests.unit.programs import Program, can_unshare, is_running
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what a witness needs")

WORKER = (
    "from celery_backfill.worker.witness import Presence, Witness\npresence = Presence.open(); say(presence.identity)\n"
)
WAIT = "time.sleep(60)"
FORK = "child = os.fork()\nif child: say(child)\n" + WAIT
PLACE_PARTS = 4


def is_gone(identity: str) -> bool:
    return Witness().is_gone(identity)


@pytest.fixture
def worker() -> Iterator[Program]:
    with Program(WORKER + WAIT) as program:
        yield program


def test_a_living_worker_is_not_gone(worker: Program) -> None:
    assert not is_gone(worker.line())


def test_a_killed_worker_is_gone_even_before_its_parent_has_noticed(worker: Program) -> None:
    identity = worker.line()
    worker.signal(signal.SIGKILL)
    wait_until(lambda: is_gone(identity), "it is gone")
    assert psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE
    worker.end()
    assert is_gone(identity)


def test_a_stopped_worker_is_not_gone(worker: Program) -> None:
    identity = worker.line()
    worker.signal(signal.SIGSTOP)
    assert not is_gone(identity)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_worker_is_not_gone_before_its_children(state: str) -> None:
    with Program(WORKER + FORK) as worker:
        identity, child = worker.line(), int(worker.line())
        if state == "stopped":
            os.kill(child, signal.SIGSTOP)
        worker.signal(signal.SIGKILL)
        worker.end()
        assert is_running(child)
        assert not is_gone(identity)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: is_gone(identity), "it is gone")


def test_a_program_started_by_a_task_does_not_count() -> None:
    with Program(
        WORKER + "import subprocess; say(subprocess.Popen(['sleep', '60'], close_fds=False).pid); " + WAIT
    ) as worker:
        identity, program = worker.line(), int(worker.line())
        worker.signal(signal.SIGKILL)
        wait_until(lambda: is_gone(identity), "it is gone")
        assert is_running(program)


def test_a_closed_presence_alone_is_no_death() -> None:
    with Program(WORKER + "presence.close(); say('closed'); " + WAIT) as worker:
        identity = worker.line()
        worker.line()
        assert not is_gone(identity)


def test_another_process_of_the_same_pid_is_not_taken_for_it(worker: Program) -> None:
    """The pid was used again: the presence is free, the process lives, its start time differs."""
    place, pid, start, _ = worker.line().rsplit("/", 3)
    assert is_gone(f"{place}/{pid}/{int(start) - 1}/{'0' * 32}")
    assert not is_gone(f"{place}/{pid}/{start}/{'0' * 32}")


def test_who_holds_the_presence_is_not_gone_whatever_its_pid(worker: Program) -> None:
    place, pid, start, presence = worker.line().rsplit("/", 3)
    assert not is_gone(f"{place}/{pid}/{int(start) - 1}/{presence}")


@pytest.mark.parametrize("part", range(PLACE_PARTS), ids=["host", "boot", "pid namespace", "network namespace"])
def test_a_worker_of_another_place_is_never_gone(worker: Program, part: int) -> None:
    parts = worker.line().split("/")
    worker.signal(signal.SIGKILL)
    worker.end()
    assert is_gone("/".join(parts))
    parts[part] += "1"
    assert not is_gone("/".join(parts))


NONSENSE = ["", "x", "/////", "a/b/1/2/3", "p/0/0/" + "0" * 32, "p/-1/0/" + "0" * 32, "p/1/1/" + "g" * 32]


@pytest.mark.parametrize("identity", NONSENSE)
def test_nonsense_is_never_gone(identity: str) -> None:
    assert not is_gone(identity)


@pytest.mark.parametrize("pid", ["0", "-1", "1.5", "9" * 20, "\N{FULLWIDTH DIGIT ONE}"])
def test_a_pid_that_cannot_be_is_never_gone(pid: str) -> None:
    place, _, start, _ = Presence.open().identity.rsplit("/", 3)
    assert not is_gone(f"{place}/{pid}/{start}/{'0' * 32}")


def test_asking_often_uses_nothing_up(worker: Program) -> None:
    identity = worker.line()
    witness = Witness()
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert not any(witness.is_gone(identity) for _ in range(3000))
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    worker.signal(signal.SIGKILL)
    wait_until(lambda: witness.is_gone(identity), "it is gone")


def test_a_programs_name_may_look_like_anything() -> None:
    rename = "ctypes.CDLL(None).prctl(15, b'a) Z 1 (b\\n 2')\n"
    with Program(rename + WORKER + WAIT) as worker:
        identity = worker.line()
        assert b") Z 1 (b" in psutil.Process(worker.pid).name().encode()
        assert not is_gone(identity)
        assert not is_gone(identity.rsplit("/", 1)[0] + "/" + "0" * 32)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_worker_is_judged_too() -> None:
    imports = "from celery_backfill.worker.witness import Presence, Witness\n"
    ask = "Presence.open()\nwhile True: say(Witness().is_gone(input()))"
    with Program(f"{imports}os.setuid(65534)\n{WORKER}{WAIT}") as worker:
        identity = worker.line()
        with Program(f"{imports}os.setuid(65533)\n{ask}") as other:
            other.tell(identity.rsplit("/", 1)[0] + "/" + "0" * 32)
            assert other.line() == "False"
            worker.signal(signal.SIGKILL)
            wait_until(lambda: is_gone(identity), "it is gone")
            other.tell(identity)
            assert other.line() == "True"


@pytest.mark.skipif(not can_unshare(), reason="no right to make namespaces")
@pytest.mark.parametrize("namespace", ["-pf", "-n"])
def test_a_worker_of_another_namespace_is_never_gone(namespace: str) -> None:
    with Program(WORKER, wrapper=["unshare", namespace, "--mount-proc"]) as worker:
        identity = worker.line()
        assert identity
        worker.end()
        assert not is_gone(identity)


@pytest.mark.skipif(not can_unshare(), reason="no right to make namespaces")
def test_where_proc_shows_another_namespace_nothing_is_witnessed() -> None:
    with Program(WORKER, wrapper=["unshare", "-pf"]) as worker:
        assert worker.line() == ""


@pytest.mark.parametrize("patch", ["gevent.monkey; gevent.monkey.patch_all()", "eventlet; eventlet.monkey_patch()"])
def test_patched_sockets_answer_the_same(worker: Program, patch: str) -> None:
    code = f"import {patch}\n{WORKER}while True: say(Witness().is_gone(input()))"
    identity = worker.line()
    with Program(code) as patched:
        own = patched.line()
        patched.tell(identity)
        assert patched.line() == "False"
        worker.signal(signal.SIGKILL)
        worker.end()
        patched.tell(identity)
        assert patched.line() == "True"
        patched.signal(signal.SIGKILL)
        wait_until(lambda: is_gone(own), "it is gone")


def test_a_celery_workers_children_hold_its_presence(lone_worker: LoneWorker) -> None:
    """Prefork keeps the file open in its children, those that it starts later too, and one may outlive its parent."""
    lone_worker.start(concurrency=2, flags="presence survive_parent")
    identity = lone_worker.wait_said("identity")
    first, second = lone_worker.children(2)
    os.kill(first, signal.SIGKILL)
    (third,) = set(lone_worker.children(3)) - {first, second}
    lone_worker.kill_parent()
    for child in (second, third):
        assert is_running(child)
        assert not is_gone(identity)
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: is_gone(identity), "it is gone")
