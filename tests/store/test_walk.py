"""Every order of events in small worlds, to the end of each (invariants 1 to 6, F1, F3, F12, F24, F26; L1, L3, L5, C4,
C5, C6, C17, C24).

The real scripts run on a real server; what is rare (a lost reply, a lease that passes, a crash, a redelivery, the loss
of all data) happens as often as a world's budget says.
"""

from __future__ import annotations

import pytest
from walk.search import Walk
from walk.world import World
from walk.worlds import WORLDS


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name.replace(" ", "-"))
def test_every_order_of_events(world: World, redis_url: str, namespace: str) -> None:
    walk = Walk(world, redis_url, namespace)
    try:
        figures = walk.everywhere()
    finally:
        walk.close()
    print(figures)
    assert figures.states > 100
