"""Long random runs of the same model in larger worlds, with more faults than a walk to the end could take in."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from walk.search import Walk
from walk.world import Attempt, Budget, World
from walk.worlds import ENDS

STEPS = 120
RUNS = 90
FAULTS = Budget(unheard=8, redeliveries=4, crashes=3, expiries=8, losses=0)
ATTEMPTS = {
    "A": Attempt("x"),
    "B": Attempt("x", queue="p"),
    "C": Attempt("y", 2),
    "D": Attempt("y", 2, rank=1),
    "E": Attempt("y", 2),
    "F": Attempt(),
}


def large(name: str, *, one_redis: bool) -> World:
    return World(
        name=name,
        attempts=ATTEMPTS,
        one_redis=one_redis,
        workers=3,
        slots=2,
        prefetch=3,
        pairs=True,
        outcomes=ENDS,
        wants=(0, 1),
        claims=2,
        max_stalls=2,
        retries=2,
        budget=FAULTS,
    )


@pytest.fixture(params=[True, False], ids=["one Redis", "another broker"])
def walk(request: pytest.FixtureRequest, redis_url: str, namespace: str) -> Iterator[Walk]:
    walk = Walk(large(str(request.node.name), one_redis=request.param), redis_url, namespace)
    yield walk
    walk.close()


@settings(
    max_examples=RUNS,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(choices=st.randoms(use_true_random=False))
def test_long_random_runs_keep_every_promise(walk: Walk, choices: Random) -> None:
    state = walk.start()
    for _ in range(STEPS):
        moves = walk.moves(state)
        if not moves:
            return
        state = walk.step(state, choices.choice(moves))
