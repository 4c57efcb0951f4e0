"""A process that must be dead in time, in each state it can be in."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from celery_backfill.worker import deadman
from tests.unit.programs import Program, can_unshare, is_running
from tests.waiting import wait_until

HOLD_THE_GIL = "ctypes.PyDLL(None).sleep(60)"
KERNEL = "from celery_backfill.worker.deadman import DeadMansTimer as Timer"
THREAD = "from celery_backfill.worker.deadman import ThreadTimer as Timer"
START = "\ntimer = Timer()\n"

needs_kernel_timers = pytest.mark.skipif(sys.platform != "linux", reason="there are no timers of the kernel")
both = pytest.mark.parametrize("kind", [pytest.param(KERNEL, marks=needs_kernel_timers, id="kernel"), THREAD])


@both
def test_it_kills_at_its_time(kind: str) -> None:
    """C14."""
    with Program(kind + START + "at = time.monotonic() + 0.3; timer.arm(at); say(at)\nwhile True: pass") as program:
        at = float(program.line())
        assert program.end() == -signal.SIGKILL
        assert time.monotonic() >= at


@both
@pytest.mark.parametrize("at", ["time.monotonic() - 5", "0.0"])
def test_a_time_that_has_passed_kills_at_once(kind: str, at: str) -> None:
    with Program(kind + START + f"timer.arm({at}); time.sleep(60)") as program:
        assert program.end() == -signal.SIGKILL


@needs_kernel_timers
def test_it_needs_no_gil() -> None:
    """C8, C14: inside a C call that holds it."""
    with Program(KERNEL + START + f"timer.arm(time.monotonic() + 0.3)\n{HOLD_THE_GIL}") as program:
        assert program.end() == -signal.SIGKILL


@needs_kernel_timers
def test_a_stopped_process_is_dead_at_its_time() -> None:
    """C3, C14: it says nothing more, were it to be continued."""
    with Program(
        KERNEL + START + "timer.arm(time.monotonic() + 2)\nwhile True: say('on'); time.sleep(0.01)"
    ) as program:
        assert program.line() == "on"
        program.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        assert program.end() == -signal.SIGKILL
        assert time.monotonic() - stopped > 0.1


@both
@pytest.mark.parametrize("then", ["timer.arm(time.monotonic() + 60)", "timer.disarm()", "timer.close()"])
def test_who_is_armed_again_or_disarmed_lives(kind: str, then: str) -> None:
    code = f"timer.arm(time.monotonic() + 0.2); {then}; time.sleep(0.4); say('lives'); timer.close(); timer.close()"
    with Program(kind + START + code) as program:
        assert program.line() == "lives"
        assert program.end() == 0


@needs_kernel_timers
def test_it_is_armed_again_after_each_of_these() -> None:
    code = "timer.disarm(); timer.arm(time.monotonic() + 60); timer.close(); timer.arm(0); time.sleep(60)"
    with Program(KERNEL + START + code) as program:
        assert program.end() == -signal.SIGKILL


FORK = """
timer.arm(time.monotonic() + 60)
child = os.fork()
if child == 0:
    {child}
    time.sleep(60)
say(child)
{parent}
time.sleep(60)
"""


@needs_kernel_timers
def test_a_fork_has_no_deadline_of_its_parents() -> None:
    code = FORK.format(child="timer.disarm(); timer.close(); say(os.getpid())", parent="input(); timer.arm(0)")
    with Program(KERNEL + START + code) as program:
        child = int(program.line())
        assert int(program.line()) == child
        program.tell("die")
        assert program.end() == -signal.SIGKILL
        assert is_running(child)


@needs_kernel_timers
def test_a_forks_deadline_is_its_own() -> None:
    code = FORK.format(child="timer.arm(0)", parent="say(os.WTERMSIG(os.waitpid(child, 0)[1]))")
    with Program(KERNEL + START + code) as program:
        program.line()
        assert program.line() == str(int(signal.SIGKILL))
        assert program.process.poll() is None


@pytest.mark.skipif(not can_unshare(), reason="no right to make a pid namespace")
def test_the_first_process_of_a_container_dies_too() -> None:
    """It ignores a SIGKILL from its own namespace."""
    code = f"timer.arm(time.monotonic() + 0.3); say(os.getpid())\n{HOLD_THE_GIL}"
    with Program(KERNEL + START + code, wrapper=["unshare", "-pf", "--mount-proc"]) as program:
        assert program.line() == "1"
        assert program.end() == signal.SIGRTMIN + 6


def test_a_closed_threads_thread_ends() -> None:
    timer = deadman.ThreadTimer()
    assert timer.thread.is_alive()
    timer.close()
    wait_until(lambda: not timer.thread.is_alive(), "the thread has ended")


def test_the_kernel_does_it_on_linux() -> None:
    assert deadman.available() == (sys.platform == "linux")
