"""What the run looks like at one moment, for the views."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BusyKey:
    """A package whose limit is held or waited for."""

    package: str
    held: int
    blocked: int


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of the run. ``blocked`` waits behind a limit, ``scheduled`` for its next try, in no slot."""

    files: int
    published: int = 0
    done: int = 0
    dead: int = 0
    running: int = 0
    blocked: int = 0
    scheduled: int = 0
    seconds: float = 0.0
    busiest: tuple[BusyKey, ...] = ()

    @property
    def finished(self) -> int:
        return self.done + self.dead

    @property
    def rate(self) -> float:
        """Files finished a second, since the first was sent."""
        return self.finished / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds to go at the rate so far; None while there is no rate."""
        return (self.files - self.finished) / self.rate if self.rate > 0 else None
