"""The walk is worth something: with any one guard taken out of the scripts, it finds a broken promise."""

from __future__ import annotations

import pytest
from walk.broken import GUARDS, Guard
from walk.search import Broken, Walk
from walk.worlds import WORLDS


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.file}: {guard.names}")
def test_a_guard_taken_out_is_noticed(guard: Guard, redis_url: str, namespace: str) -> None:
    world = next(world for world in WORLDS if world.name == guard.world)
    walk = Walk(world, redis_url, namespace, guard.taken_out())
    try:
        with pytest.raises(Broken):
            walk.everywhere()
    finally:
        walk.close()
