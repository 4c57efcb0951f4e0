"""The short run: real workers, two worlds, a few faults in a seeded order. The long one is ``make chaos``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.broker import amqp_url, rabbitmq_is_there
from tests.chaos.campaign import run_world
from tests.chaos.faults import FAULTS
from tests.chaos.proxy import Network
from tests.chaos.world import Kind

SEED = 7
SHORT = {
    Kind("redis-apart", "prefork"): ("kill worker", "stop worker", "restart the store without its data"),
    Kind("rabbitmq", "threads"): ("kill worker", "cut one worker from the store"),
}


@pytest.fixture
def network() -> Iterator[Network]:
    own = Network()
    yield own
    own.close()


@pytest.mark.parametrize("kind", SHORT, ids=str)
def test_faults_break_no_promise(kind: Kind, network: Network, postgres_server_url: str, tmp_path: Path) -> None:
    """C1, C3, C12, C14: never more than N at once with strict; each task ends once; nothing is left."""
    if kind.broker == "rabbitmq" and not rabbitmq_is_there():
        reason = f"no RabbitMQ at {amqp_url().rpartition('@')[2]}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    outcome = run_world(
        kind,
        seed=SEED,
        seconds=0,
        faults=[FAULTS[name] for name in SHORT[kind]],
        folder=tmp_path,
        network=network,
        postgres_url=postgres_server_url,
    )
    assert len(outcome.injected) == len(SHORT[kind])
    assert outcome.runs >= outcome.sent / 2 > 10
    assert not outcome.violations, "\n".join(
        [
            f"seed {SEED}, marks and logs in {tmp_path}",
            *(f"{one.what} ({one.fault}): {one.text}" for one in outcome.violations),
        ]
    )
