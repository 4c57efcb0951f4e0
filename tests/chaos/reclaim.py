"""How soon a lost worker's tasks run again, at the default settings: measured by the marks, from kill to next start."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.app import GOODS, RELEASE
from tests.chaos.campaign import database
from tests.chaos.history import Run
from tests.chaos.judge import Finding, judge
from tests.chaos.proxy import Network
from tests.chaos.world import CONCURRENCY, WORKERS, Kind, World

WAIT_SECONDS = 40.0
RENEWAL_SECONDS = 5.0
CHILD_DEATHS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A way to lose a run, and within how many seconds it must have started again."""

    name: str
    bound: float
    pools: tuple[str, ...]


BY_WITNESS = Case("worker killed, another on its host", 4.0, ("prefork", "threads"))
BY_LEASE = Case("worker killed, no witness: the lease runs out", 16.0, ("prefork", "threads"))
CHILD = Case("child killed", 1.0, ("prefork",))
CASES = (BY_WITNESS, BY_LEASE, CHILD)


@dataclass(frozen=True, slots=True)
class Reclaims:
    """What was measured of one case in one world."""

    case: Case
    world: str
    seconds: Sequence[float]
    findings: Sequence[Finding]

    @property
    def held(self) -> bool:
        """Whether every run started again in time, and nothing else went wrong."""
        return bool(self.seconds) and max(self.seconds) <= self.case.bound and not self.findings


def measure(case: Case, kind: Kind, *, seed: int, folder: Path, network: Network, postgres_url: str) -> Reclaims:
    """Measure one case in a world of its own."""
    with database(postgres_url) as own_url:
        seed = random.Random(f"{seed} {kind} {case.name}").getrandbits(32)
        witness = case is not BY_LEASE
        world = World(kind, folder=folder, network=network, postgres_url=own_url, seed=seed, witness=witness)
        try:
            seconds = list(_after_child_deaths(world) if case is CHILD else _after_worker_deaths(world))
            (folder / RELEASE).touch()
            left = world.drain(muster=False)
            world.complaints += [f"{name} did not end" for name in world.dismiss()]
        finally:
            world.close()
        return Reclaims(case, str(kind), seconds, judge(world, seed, (), left).violations)


def _after_worker_deaths(world: World) -> Iterator[float]:
    """All workers but one die, at any time between two renewals; the one that is left has room for all that ran."""
    world.start_workers()
    victims = world.alive
    runs = _hold(world, WORKERS * CONCURRENCY)
    world.start_worker(concurrency=len(runs) + CONCURRENCY).wait_ready()
    for victim in victims:
        world.wait(world.dice.uniform(0.0, RENEWAL_SECONDS))
        victim.kill()
    died = {victim.name: victim.gone_at or 0.0 for victim in victims}
    for run in runs:
        yield _next_start(world, run) - died[run.worker]


def _after_child_deaths(world: World) -> Iterator[float]:
    world.start_worker(concurrency=4).wait_ready()
    runs = _hold(world, 3)
    for _ in range(CHILD_DEATHS):
        world.wait(world.dice.uniform(0.1, 1.0))
        at = world.dice.randrange(len(runs))
        os.kill(runs[at].pid, signal.SIGKILL)
        started = _next_start(world, runs[at])
        yield started - runs[at].last_seen
        runs[at] = world.history.runs_of(runs[at].task_id)[-1]


def _hold(world: World, number: int) -> list[Run]:
    """Tasks that run until they are released, each holding the only permit of a key; their first runs."""
    for at in range(number):
        world.load.send(GOODS[0], 1, "hold", key=f"hold-{at}")
    assert world.wait_for(lambda: len(world.history.running()) == number, WAIT_SECONDS), "not all have started"
    return world.history.running()


def _next_start(world: World, run: Run) -> float:
    def later() -> list[Run]:
        return [other for other in world.history.runs_of(run.task_id) if other.token > run.token]

    return later()[0].started if world.wait_for(later, WAIT_SECONDS) else float("inf")
