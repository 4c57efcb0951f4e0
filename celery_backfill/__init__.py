"""At most N Celery tasks per key, leases that survive a worker's death, and every final failure kept in PostgreSQL."""

from .errors import LeaseLostError, NonRetryableError
from .limits import Limit
from .task import BackfillTask

__all__ = ["BackfillTask", "LeaseLostError", "Limit", "NonRetryableError"]
