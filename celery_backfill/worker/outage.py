"""An ongoing trouble, told of with restraint."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from ..events import emit


class Outage:
    """How long to wait until the next try, and whether it is worth another line.

    Waits grow from half a second to half a minute, with jitter; lines come at once, then after 10 s, 20 s, 40 s ...,
    at most every ten minutes. One that comes and goes has no more lines than one that stays. ``away`` and ``back`` are
    the names of its events.
    """

    FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
    FIRST_SILENCE, LONGEST_SILENCE = 10.0, 600.0

    def __init__(self, away: str, back: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._away, self._back = away, back
        self._clock = clock
        self._tries = 0
        self._told = False
        self._began = self._silence = 0.0
        self._next_line = float("-inf")

    def failed(self, error: BaseException, level: int = logging.WARNING) -> float:
        """Note a failed try; answers the seconds to wait."""
        now = self._clock()
        if not self._tries:
            self._began, self._silence = now, self.FIRST_SILENCE
        if now >= self._next_line:
            emit(self._away, level, seconds=round(now - self._began, 1), error=f"{type(error).__name__}: {error}")
            self._told = True
            self._next_line = now + self._silence
            self._silence = min(self.LONGEST_SILENCE, 2 * self._silence)
        wait = min(self.LONGEST_WAIT, self.FIRST_WAIT * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return wait * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Note a try that went well."""
        if self._told:
            emit(self._back, logging.WARNING, after_seconds=round(self._clock() - self._began, 1))
        self._tries, self._told = 0, False
