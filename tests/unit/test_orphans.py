"""A pool's children whose worker was killed (C23)."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from celery_backfill.worker import orphans
from tests.unit.lone_worker import LoneWorker
from tests.unit.programs import Program, is_running
from tests.waiting import wait_until

WAYS = ("spin", "sleep", "hold_the_gil")


@pytest.mark.parametrize("flags", ["", "no_death_signal guard"], ids=["Celery's own", "ours alone"])
def test_a_killed_workers_children_die_whatever_they_do(lone_worker: LoneWorker, flags: str) -> None:
    """C23: in Python code, in a sleep, in a C call that holds the GIL, waiting for a task, stopped."""
    lone_worker.start(concurrency=5, flags=flags)
    for way in WAYS:
        lone_worker.send(way)
    busy = [int(wait_until(lambda way=way: lone_worker.pids(way), f"one does {way}")[0]) for way in WAYS]
    idle = [child for child in lone_worker.children(5) if child not in busy]
    os.kill(idle[0], signal.SIGSTOP)
    wait_until(lambda: psutil.Process(idle[0]).status() == psutil.STATUS_STOPPED, "one is stopped")
    lone_worker.kill_parent()
    wait_until(lambda: not any(map(is_running, lone_worker.children(5))), "all children are gone")


def test_a_worker_killed_while_it_forks_leaves_no_child(lone_worker: LoneWorker) -> None:
    """C23: the parent is dead before the child asked for a signal at its death. It does not even finish its start."""
    lone_worker.start(concurrency=1, flags="guard slow_fork", until="")
    lone_worker.wait_said("forked")
    (child,) = lone_worker.pids("forked")
    lone_worker.kill_parent()
    lone_worker.touch("go_on")
    wait_until(lambda: not is_running(child), "the child is gone")
    assert lone_worker.pids("child") == []


FORK = """
from celery_backfill.worker import orphans
{before}
parent = os.getpid()
if os.fork() == 0:
    {child}
    say(os.getpid())
time.sleep(60)
"""


def test_where_the_kernel_does_not_tell_a_thread_looks() -> None:
    """As on macOS."""
    no_signal = "orphans._kernel_kills_with_parent = lambda: False"
    with Program(FORK.format(before=no_signal, child="orphans.guard_against_orphanhood(parent)")) as program:
        child = int(program.line())
        assert is_running(child)
        program.signal(signal.SIGKILL)
        wait_until(lambda: not is_running(child), "the child is gone")


def test_an_orphan_ends_when_it_is_asked_to_look() -> None:
    with Program(
        FORK.format(before="", child="os.kill(parent, 9)\n    while True: orphans.exit_if_orphaned(parent)")
    ) as program:
        assert program.line() == ""


def test_who_has_its_parent_lives() -> None:
    orphans.exit_if_orphaned(os.getppid())
