"""Waiting for a condition, never for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.02
#: Timeouts are those of a quiet machine. Waiting longer on a loaded one costs nothing where the condition comes true.
PATIENCE = 3

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], description: str, timeout: float = 10.0) -> Value:
    """The first true value of ``condition``. Raises ``AssertionError`` with the description and the last value."""
    deadline = time.monotonic() + PATIENCE * timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE * timeout:g} s: {description}; last value: {value!r}")
        time.sleep(POLL_SECONDS)
    return value
