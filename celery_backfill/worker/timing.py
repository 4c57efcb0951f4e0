"""How often a worker renews and sweeps, and how long it may count on a lease that it could not renew."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import RENEWALS_PER_LEASE

LONGEST_SWEEP_SECONDS = 1.0
LONGEST_GAP_SECONDS = 2.5
LONGEST_MARGIN_SECONDS = 1.0
SWEEPS_PER_GAP = 2.5
GAPS_PER_LEASE = 4
MARGINS_PER_LEASE = 10


@dataclass(frozen=True, slots=True)
class Timing:
    """Made of the ``shortest`` and ``longest`` lease of a worker's tasks, in seconds."""

    shortest: float
    longest: float

    @property
    def renew_every(self) -> float:
        """Seconds between two renewals."""
        return self.shortest / RENEWALS_PER_LEASE

    @property
    def gap(self) -> float:
        """How long the store has to hear of nobody to take it that it was the store that was away (F24)."""
        return min(LONGEST_GAP_SECONDS, self.shortest / GAPS_PER_LEASE)

    @property
    def sweep_every(self) -> float:
        """Seconds between two sweeps: well under a gap."""
        return min(LONGEST_SWEEP_SECONDS, self.gap / SWEEPS_PER_GAP)

    @property
    def margin(self) -> float:
        """Seconds that a strict task has to end softly before it is killed."""
        return min(LONGEST_MARGIN_SECONDS, self.shortest / MARGINS_PER_LEASE)

    def counts_until(self, sent: float, lease: float) -> float:
        """Until when a lease can be counted on that was granted or renewed by a call sent at this monotonic time.

        Earlier than the lease's end by a gap, since a server's clock may jump by almost that much unnoticed, and by the
        time to stop the task.
        """
        return sent + lease - self.gap - self.margin
