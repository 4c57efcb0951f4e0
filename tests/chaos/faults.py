"""Faults, each a generator over a world: it puts the fault in, yields who is hit, holds it, and heals it.

``hold`` is how long a fault lasts where that is to be chosen: from well within a lease to more than two of them.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.proxy import Proxy
from tests.chaos.world import World

#: Names of workers, or process ids, whose runs are hit.
Hit = frozenset[str | int]
Way = Iterator[Hit]

NOBODY: Hit = frozenset()
APART = ("redis-apart",)
TWO_SERVERS = ("redis-apart", "rabbitmq")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its name, where it can be, and what it does."""

    name: str
    inject: Callable[[World], Way]
    brokers: tuple[str, ...]
    pools: tuple[str, ...]

    def fits(self, world: World) -> bool:
        return world.kind.broker in self.brokers and world.kind.pool in self.pools


FAULTS: dict[str, Fault] = {}


def _fault(
    name: str,
    brokers: tuple[str, ...] = ("redis-same", "redis-apart", "rabbitmq"),
    pools: tuple[str, ...] = ("prefork", "threads"),
) -> Callable[[Callable[[World], Way]], Callable[[World], Way]]:
    def register(inject: Callable[[World], Way]) -> Callable[[World], Way]:
        FAULTS[name] = Fault(name, inject, brokers, pools)
        return inject

    return register


def _short_or_long(world: World) -> float:
    """Within a lease, or well beyond one."""
    low, high = world.dice.choice([(0.3, 0.8), (1.3, 2.2)])
    return world.dice.uniform(low, high) * world.lease


def _brief(world: World) -> float:
    return world.dice.uniform(0.2, 1.5)


# Workers.


@_fault("kill worker")
def _kill_worker(world: World) -> Way:
    """SIGKILL of its main process. Another takes its place."""
    worker = world.pick()
    worker.kill()
    yield frozenset({worker.name})
    world.start_worker().wait_ready()


@_fault("kill child", pools=("prefork",))
def _kill_child(world: World) -> Way:
    if child := _busy_child(world):
        _signal(child, signal.SIGKILL)
        yield frozenset({child})
    else:
        yield NOBODY


@_fault("stop worker")
def _stop_worker(world: World) -> Way:
    """SIGSTOP of the main process: what runs in prefork's children goes on, with nobody to renew its lease."""
    worker = world.pick()
    worker.stop()
    yield frozenset({worker.name})
    world.wait(_short_or_long(world))
    worker.go_on()


@_fault("stop worker and children", pools=("prefork",))
def _stop_group(world: World) -> Way:
    worker = world.pick()
    worker.stop_all()
    yield frozenset({worker.name})
    world.wait(_short_or_long(world))
    worker.go_on_all()


@_fault("stop child", pools=("prefork",))
def _stop_child(world: World) -> Way:
    if child := _busy_child(world):
        _signal(child, signal.SIGSTOP)
        yield frozenset({child})
        world.wait(_short_or_long(world))
        _signal(child, signal.SIGCONT)
    else:
        yield NOBODY


@_fault("warm shutdown")
def _warm_shutdown(world: World) -> Way:
    yield from _shut_down(world, cold=False)


@_fault("cold shutdown")
def _cold_shutdown(world: World) -> Way:
    yield from _shut_down(world, cold=True)


def _shut_down(world: World, *, cold: bool) -> Way:
    """A deploy: the next one is started while this one ends."""
    worker = world.pick()
    worker.ask_to_end(cold=cold)
    yield frozenset({worker.name})
    world.start_worker().wait_ready()
    if not worker.wait_ended():
        world.complain(f"{worker.name} did not end after a {'cold' if cold else 'warm'} shutdown")


# Ways.


@_fault("cut one worker from the store")
def _cut_store_of_one(world: World) -> Way:
    worker = world.pick()
    yield from _cut(world, [ways.store for ways in world.ways(worker)], frozenset({worker.name}))


@_fault("cut all workers from the store")
def _cut_store_of_all(world: World) -> Way:
    yield from _cut(world, [ways.store for ways in world.ways()])


@_fault("cut the broker", brokers=TWO_SERVERS)
def _cut_broker(world: World) -> Way:
    worker = world.dice.choice([None, world.pick()])
    yield from _cut(world, [ways.broker for ways in world.ways(worker)])


@_fault("cut PostgreSQL")
def _cut_postgres(world: World) -> Way:
    yield from _cut(world, [ways.postgres for ways in world.ways()])


def _cut(world: World, ways: list[Proxy], hit: Hit = NOBODY) -> Way:
    """Reset, or silent: then what was sent meanwhile arrives late."""
    silent = world.dice.random() < 0.5
    for way in ways:
        way.silence() if silent else way.cut()
    yield hit
    world.wait(_short_or_long(world))
    for way in ways:
        way.heal()


@_fault("drop replies")
def _drop_replies(world: World) -> Way:
    """Of every ten replies to scripts two are lost, and their connection with them."""
    for ways in world.ways():
        ways.store.lose_replies(0.2, random.Random(world.dice.random()))
    yield NOBODY
    world.wait(world.dice.uniform(1.0, 1.5) * world.lease)
    for ways in world.ways():
        ways.store.heal()


@_fault("reset connections")
def _reset_connections(world: World) -> Way:
    """Once, of one worker to everything (C25)."""
    worker = world.pick()
    for way in world.ways(worker)[0].all():
        way.reset()
    yield NOBODY
    world.wait(_brief(world))


# Servers.


@_fault("freeze the store")
def _freeze_store(world: World) -> Way:
    world.store.freeze()
    yield NOBODY
    world.wait(_short_or_long(world))
    world.store.thaw()


@_fault("freeze the broker", brokers=APART)
def _freeze_broker(world: World) -> Way:
    assert world.broker.server is not None
    world.broker.server.freeze()
    yield NOBODY
    world.wait(_short_or_long(world))
    world.broker.server.thaw()


@_fault("restart the store")
def _restart_store(world: World) -> Way:
    world.store.kill()
    yield NOBODY
    world.wait(world.dice.choice([_brief(world), _short_or_long(world)]))
    world.store.start()


@_fault("restart the store without its data")
def _empty_store(world: World) -> Way:
    """Its owners bring back what runs; what waits in it is gone (F26)."""
    world.store.kill()
    yield NOBODY
    world.wait(_brief(world))
    world.store.start(keep_data=False)
    # A worker that is killed before it has brought back its leases loses them: that would be two faults.
    world.wait(1.5 * world.lease)


@_fault("restart the broker", brokers=APART)
def _restart_broker(world: World) -> Way:
    assert world.broker.server is not None
    world.broker.server.kill()
    yield NOBODY
    world.wait(_brief(world))
    world.broker.server.start()


@_fault("restart the broker without its data", brokers=APART)
def _empty_broker(world: World) -> Way:
    assert world.broker.server is not None
    world.broker.server.kill()
    yield NOBODY
    world.wait(_brief(world))
    world.broker.server.start(keep_data=False)


@_fault("jump the store's clock")
def _jump_clock(world: World) -> Way:
    world.clock.jump(world.dice.choice([-10, 10]))
    yield NOBODY
    world.wait(_brief(world))


@_fault("drop scripts")
def _drop_scripts(world: World) -> Way:
    for _ in range(5):
        world.store.client.script_flush()
        world.wait(0.1)
    yield NOBODY


def _busy_child(world: World) -> int | None:
    """A pool process in which a task runs now."""
    alive = {worker.name: worker for worker in world.alive}
    runs = [run for run in world.history.read().running() if run.worker in alive]
    world.dice.shuffle(runs)
    return next((run.pid for run in runs if run.pid in alive[run.worker].children()), None)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
