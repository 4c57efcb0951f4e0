"""Runs worlds: each with its load, its faults in a seeded random order, its drain, and its verdict."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.migrate import migrate
from tests.chaos.faults import Fault
from tests.chaos.judge import Injected, Outcome, judge
from tests.chaos.proxy import Network
from tests.chaos.world import Kind, World

LEASE_SECONDS = 3.0
PAUSE = (0.2, 1.2)
UNDER_WAY, UNDER_WAY_SECONDS = 6, 20.0

#: Told what is going on: the world, the fault under way (None: none), and the outcome at its end.
Shows = Callable[[World, str], None]


def run_world(
    kind: Kind,
    *,
    seed: int,
    seconds: float,
    faults: Sequence[Fault],
    folder: Path,
    network: Network,
    postgres_url: str,
    show: Shows = lambda world, doing: None,
) -> Outcome:
    """One world: every fault once at least, and on until the time is over. Leaves its marks and logs in the folder."""
    dice = random.Random(f"{seed} {kind}")
    with database(postgres_url) as own_url:
        doing = ["start"]
        world = World(
            kind,
            folder=folder,
            network=network,
            postgres_url=own_url,
            seed=dice.getrandbits(32),
            lease_seconds=LEASE_SECONDS,
            witness=dice.random() < 0.5,
            looks=lambda world: show(world, doing[0]),
        )
        injected: list[Injected] = []
        left: list[str] = []
        try:
            world.start_workers()
            world.load.start()
            # Faults of a store or a worker with nothing in it would prove little.
            world.wait_for(lambda: len(world.history.ended) >= UNDER_WAY, UNDER_WAY_SECONDS)
            injected.extend(_inject_all(world, dice, faults, seconds, doing))
            doing[0] = "drain"
            left = world.drain()
            doing[0] = "shutdown"
            world.complaints += [f"{name} did not end" for name in world.dismiss()]
        except AssertionError as error:
            world.complain(f"during {doing[0]}: {error}")
        finally:
            world.close()
        outcome = judge(world, seed, injected, left)
    (folder / "verdict.json").write_text(json.dumps(asdict(outcome), indent=1, default=str))
    return outcome


def _inject_all(
    world: World, dice: random.Random, faults: Sequence[Fault], seconds: float, doing: list[str]
) -> Iterator[Injected]:
    until = time.monotonic() + seconds
    fitting = [fault for fault in faults if fault.fits(world)]
    due: list[Fault] = []
    first_round = True
    while fitting and (first_round or time.monotonic() < until):
        if not due:
            due = dice.sample(fitting, len(fitting))
        doing[0] = "-"
        world.wait(dice.uniform(*PAUSE))
        fault = due.pop()
        doing[0] = fault.name
        yield inject(world, fault)
        first_round = first_round and bool(due)


def inject(world: World, fault: Fault) -> Injected:
    """Put one fault in, hold it, heal it."""
    began = time.monotonic()
    way = fault.inject(world)
    hit = next(way)
    for _ in way:
        raise RuntimeError(f"{fault.name} is to yield once")
    return Injected(fault.name, began, time.monotonic(), hit)


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """A database of its own, with our tables; dropped at the end."""
    name = f"chaos_{uuid.uuid4().hex}"
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        connection = OneConnection(url)
        migrate(connection)
        connection.close()
        yield url
    finally:
        with psycopg.connect(server_url, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
