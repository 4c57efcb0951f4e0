"""An exception raised in a greenlet from outside, with real hubs of gevent and eventlet; never in other code."""

from __future__ import annotations

import time

import pytest

from tests.unit.programs import Program

GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, threading
from gevent import spawn
wait = gevent.Greenlet.join
start_natively = gevent.monkey.get_original("_thread", "start_new_thread")
"""
EVENTLET = """
import eventlet
eventlet.monkey_patch()
import threading
from eventlet import spawn
from eventlet.greenthread import GreenThread
wait = GreenThread.wait
start_natively = eventlet.patcher.original("_thread").start_new_thread
"""
GREENLETS = """
import queue, socket
from celery_backfill.worker.notice import interruptible
class Lost(Exception): pass
ours, theirs = socket.socketpair()
lock = threading.Lock(); lock.acquire()
ways = {
    "sleep": lambda: time.sleep(60),
    "socket": lambda: ours.recv(1),
    "lock": lock.acquire,
    "queue": lambda: queue.Queue().get(),
    "yield": lambda: [time.sleep(0) for _ in iter(int, 1)],
}
def work(way):
    runs = []
    def run():
        try:
            with interruptible() as inside:
                runs.append(inside)
                ways[way]()
        except Lost:
            say("lost", type(inside).__name__)
            time.sleep(0.01)
            say("goes on")
    greenlet = spawn(run)
    while not runs: time.sleep(0.001)
    return greenlet, runs[0]
def interrupt_and_wait(greenlet, run):
    run.interrupt(Lost)
    wait(greenlet)
"""
hubs = pytest.mark.parametrize("hub", [GEVENT, EVENTLET], ids=["gevent", "eventlet"])
all_hubs = pytest.mark.parametrize(
    "hub",
    [GEVENT, EVENTLET, "os.environ['EVENTLET_HUB'] = 'asyncio'" + EVENTLET],
    ids=["gevent", "eventlet", "eventlet on asyncio"],
)


@hubs
def test_a_greenlet_is_interrupted_by_another_whatever_it_waits_for(hub: str) -> None:
    code = "for way in ways: interrupt_and_wait(*work(way))"
    with Program(hub + GREENLETS + code) as program:
        for _ in range(5):
            assert [program.line(), program.line()] == ["lost InGreenlet", "goes on"]
        assert program.end() == 0


@all_hubs
def test_a_greenlet_is_interrupted_by_a_thread_while_all_greenlets_wait(hub: str) -> None:
    code = """
import posix
_, run = work("sleep")
def tell():
    posix.read(0, 1)
    run.interrupt(Lost)
start_natively(tell, ())
say("waits")
time.sleep(20)
"""
    with Program(hub + GREENLETS + code) as program:
        assert program.line() == "waits"
        started = time.monotonic()
        program.tell()
        assert program.line() == "lost InGreenlet"
        assert time.monotonic() - started < 10


@hubs
def test_no_other_code_of_a_greenlet_is_hit(hub: str) -> None:
    """Told, it leaves before the hub's turn; told after leaving; told twice."""
    code = """
def run():
    with interruptible() as inside:
        inside.interrupt(Lost)
    time.sleep(0.01)
    inside.interrupt(Lost)
    time.sleep(0.01)
    try:
        with interruptible() as inside:
            inside.interrupt(Lost)
            inside.interrupt(Lost)
            try:
                time.sleep(20)
            finally:
                time.sleep(0.01)
                say("cleaned up")
    except Lost:
        say("lost")
    time.sleep(0.01)
    say("end")
wait(spawn(run))
"""
    with Program(hub + GREENLETS + code) as program:
        assert [program.line() for _ in range(3)] == ["cleaned up", "lost", "end"]
        assert program.end() == 0


@hubs
def test_an_exception_that_ends_a_greenlet_ends_nothing_else(hub: str) -> None:
    code = """
def die():
    with interruptible() as inside:
        runs.append(inside)
        time.sleep(20)
runs = []
for _ in range(2):
    spawn(die)
    while not runs: time.sleep(0.001)
    runs.pop().interrupt(Lost)
    time.sleep(0.01)
interrupt_and_wait(*work("sleep"))
"""
    with Program(hub + GREENLETS + code) as program:
        assert [program.line(), program.line()] == ["lost InGreenlet", "goes on"]
        assert program.end() == 0
