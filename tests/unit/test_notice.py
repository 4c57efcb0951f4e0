"""An exception raised in running code from outside, in each kind of pool; never in other code (C22)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from celery_backfill.worker import notice
from celery_backfill.worker.notice import InMainThread, Interruptible, InThread, interruptible
from tests.unit.lone_worker import LoneWorker
from tests.unit.programs import Program
from tests.waiting import wait_until

HITS = 10


class Lost(Exception):
    """What is raised."""


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """The tests' process listens to no signal afterwards, and asks nobody."""
    before = signal.getsignal(notice.SIGNAL)
    yield
    notice.install_in_child(lambda: None)
    signal.signal(notice.SIGNAL, before)


@contextmanager
def other_thread(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs beside the block and ends with it."""
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# The main thread: prefork, solo.


def _sleep() -> None:
    time.sleep(60)


def _read_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.recv(1)


def _read_a_socket_with_a_timeout() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        ours.recv(1)


def _take_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _wait_for_a_program() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            process.wait()
        finally:
            process.kill()


def _compute() -> None:
    while True:
        pass


WAYS = [_sleep, _read_a_socket, _read_a_socket_with_a_timeout, _take_a_lock, _wait_for_a_program, _compute]


@pytest.mark.parametrize("way", WAYS)
def test_a_main_thread_is_interrupted_whatever_it_waits_for(way: Callable[[], None]) -> None:
    run = interruptible()
    assert isinstance(run, InMainThread)
    with other_thread(lambda: _interrupt_inside(run)), pytest.raises(Lost), run:
        way()


def _interrupt_inside(run: Interruptible) -> None:
    """Once it is inside and waits, probably."""
    wait_until(lambda: run._inside, "it is inside")
    time.sleep(0.02)
    run.interrupt(Lost)


CHILD = """
from celery_backfill.worker import notice
class Lost(Exception): pass
answers = [None, Lost(), Lost()]
asked = lambda: say("asked") or answers.pop(0)
parent = os.getpid()
"""


def test_a_child_is_asked_and_raises_what_it_answers_once() -> None:
    code = """
notice.install_in_child(asked)
say("outside")
try:
    with notice.interruptible():
        say("inside")
        time.sleep(60)
except Lost:
    say("lost")
say(input())
"""
    with Program(CHILD + code) as child:
        assert child.line() == "outside"
        notice.send_to_child(child.pid)
        assert child.line() == "inside"
        notice.send_to_child(child.pid)
        assert child.line() == "asked"
        notice.send_to_child(child.pid)
        assert [child.line(), child.line()] == ["asked", "lost"]
        notice.send_to_child(child.pid)
        child.tell("end")
        assert child.line() == "end"
        assert child.end() == 0


def test_a_run_that_was_told_is_not_asked_again() -> None:
    answers = [Lost(), Lost()]
    notice.install_in_child(lambda: answers.pop())
    with suppress(Lost), interruptible():
        try:
            notice.send_to_child(os.getpid())
        finally:
            notice.send_to_child(os.getpid())
            time.sleep(0)
    assert len(answers) == 1


def test_a_child_is_not_asked_after_a_run() -> None:
    notice.install_in_child(Lost)
    with interruptible():
        pass
    notice.send_to_child(os.getpid())
    _some_work()


def test_a_run_inside_another_leaves_the_outer_one_interruptible() -> None:
    outer, inner, later = interruptible(), interruptible(), interruptible()
    with outer:
        with inner, pytest.raises(Lost):
            _interrupt_here(outer)
        with later:
            pass
        later.interrupt(KeyError)
    with pytest.raises(Lost), interruptible() as outer, interruptible():
        _interrupt_here(outer)


def _interrupt_here(run: Interruptible) -> None:
    run.interrupt(Lost)
    _compute()


def test_a_child_that_is_gone_is_nothing_to_complain_of() -> None:
    with Program("") as child:
        child.end()
        notice.send_to_child(child.pid)


# Other threads.


def test_a_thread_is_interrupted_in_python_code() -> None:
    caught: list[BaseException] = []
    runs: list[Interruptible] = []

    def work() -> None:
        try:
            with interruptible() as run:
                runs.append(run)
                while True:
                    time.sleep(0.01)
        except Lost as error:
            caught.append(error)

    with other_thread(work):
        (run,) = wait_until(lambda: runs, "it is inside")
        assert isinstance(run, InThread)
        run.interrupt(Lost)
    assert len(caught) == 1


def test_nobody_is_told_after_leaving() -> None:
    for run in (InThread(), InMainThread()):
        run.interrupt(Lost)
        with run:
            pass
        run.interrupt(Lost)


@pytest.mark.parametrize("make", [InThread, InMainThread])
def test_leaving_twice_does_no_harm(make: Callable[[], Interruptible]) -> None:
    with make() as outer:
        with make() as inner:
            pass
        inner.__exit__()
        inner.interrupt(KeyError)
        with make() as other:
            inner.__exit__()
            with pytest.raises(Lost):
                _interrupt_here(other)
        with pytest.raises(Lost):
            _interrupt_here(outer)


@pytest.mark.parametrize("make", [InThread, InMainThread])
def test_a_run_is_told_once(make: Callable[[], Interruptible]) -> None:
    with make() as run:
        with pytest.raises(Lost):
            _interrupt_here(run)
        run.interrupt(Lost)
        _some_work()


def test_what_is_taken_back_from_a_thread_is_not_raised() -> None:
    heard: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        try:
            with lock:
                _some_work()
        except Lost as error:
            heard.append(error)

    for take_back in (False, True):
        lock.acquire()
        with other_thread(work) as thread:
            assert thread.ident
            notice.raise_in_thread(thread.ident, Lost)
            if take_back:
                notice.clear_in_thread(thread.ident)
            lock.release()
    assert len(heard) == 1


def test_what_a_thread_has_not_heard_before_leaving_it_never_hears() -> None:
    """Told in the last moment: by itself, so that nothing is raised before it leaves."""
    heard: list[str] = []

    def work() -> None:
        run = InThread()
        try:
            run.__enter__()
            try:
                run.interrupt(Lost)
            finally:
                run.__exit__()
        except Lost:
            heard.append("inside")
        try:
            _some_work()
        except Lost:
            heard.append("outside")

    with other_thread(work):
        pass
    assert heard == ["inside"]


def test_a_run_does_not_leave_while_it_is_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    telling, left = threading.Event(), threading.Event()

    def tell_slowly(ident: int, error: type[BaseException]) -> None:
        telling.set()
        left.wait(0.1)
        told(ident, error)

    def work() -> None:
        try:
            with run:
                run._ident = threading.get_ident()
                telling.wait()
        except Lost:
            heard.append("inside")
        try:
            left.set()
            while other.is_alive():
                _some_work()
            _some_work()
        except Lost:
            heard.append("outside")

    told = notice.raise_in_thread
    monkeypatch.setattr(notice, "raise_in_thread", tell_slowly)
    run = InThread()
    with other_thread(lambda: _interrupt_inside(run)) as other, other_thread(work):
        pass
    assert heard == ["inside"]


def _some_work() -> None:
    for _ in range(100):
        str(1)


class Runs:
    """Runs code again and again while somebody else interrupts; counts what hit the run and what hit other code."""

    def __init__(self, make: Callable[[], Interruptible]) -> None:
        self._make = make
        self._run = make()
        self._over = False
        self.hit = self.missed = self.stray = 0

    def go(self) -> None:
        while self.hit < HITS or self.missed < HITS:
            try:
                self._one()
                _some_work()
            except Lost:
                self.stray += 1
        self._over = True

    def _one(self) -> None:
        self._run = run = self._make()
        try:
            with run:
                str(1)
        except Lost:
            self.hit += 1
        else:
            self.missed += 1

    def interrupt(self) -> None:
        while not self._over:
            self._run.interrupt(Lost)


def test_no_other_code_of_a_thread_is_hit() -> None:
    """Neither the pool's code nor the next run, however it races."""
    runs = Runs(InThread)
    with frequent_switches(), other_thread(runs.interrupt), other_thread(runs.go):
        pass
    assert runs.stray == 0


def test_no_other_code_of_a_main_thread_is_hit() -> None:
    runs = Runs(InMainThread)
    with frequent_switches(), other_thread(runs.interrupt):
        runs.go()
    assert runs.stray == 0


# Celery's pools.

POOLS = {"solo": "InMainThread", "threads": "InThread", "gevent": "InGreenlet", "eventlet": "InGreenlet"}


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_is_told_in_its_pool(lone_worker: LoneWorker, pool: str) -> None:
    lone_worker.start(concurrency=1, pool=pool)
    lone_worker.send("told", 0.01 if pool == "threads" else 60)
    assert lone_worker.wait_said("inside") == POOLS[pool]
    lone_worker.touch("lost")
    assert lone_worker.wait_said("told") == "Told()"
    lone_worker.touch("end")
    lone_worker.wait_said("ended")


def test_a_task_in_a_preforked_child_is_told_by_its_parent(lone_worker: LoneWorker) -> None:
    lone_worker.start(concurrency=1, flags="listen")
    (child,) = lone_worker.children(1)
    notice.send_to_child(child)
    lone_worker.send("told", 60)
    assert lone_worker.wait_said("inside") == "InMainThread"
    lone_worker.touch("lost")
    notice.send_to_child(child)
    assert lone_worker.wait_said("told") == "Told()"
    notice.send_to_child(child)
    lone_worker.touch("end")
    lone_worker.wait_said("ended")
    assert lone_worker.children(1) == [child]
