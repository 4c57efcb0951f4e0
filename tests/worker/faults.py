"""Faults that a worker of the tests can be started with: it dies at a chosen point, as if by a power cut."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn


def install(name: str) -> None:
    """Install the fault of that name; none for an empty one."""
    if name:
        FAULTS[name]()


def _die_before_the_brokers_ack() -> None:
    """C17: the store has the message, the broker does not know."""
    from celery_backfill.worker.intake import Intake

    def acknowledge(self: Any, request: Any, *, acked: bool) -> None:
        die()

    Intake.acknowledge = acknowledge  # type: ignore[method-assign]


def die() -> NoReturn:
    """Kill the whole worker."""
    os.killpg(os.getpgid(0), signal.SIGKILL)
    raise SystemExit


FAULTS = {"die_before_the_brokers_ack": _die_before_the_brokers_ack}
