"""What waits and runs in this demo's broker queue and lease store. Only for the view: the check does not ask it."""

from __future__ import annotations

import redis

from celery_backfill.leases.inspect import Counts, Inspector
from celery_backfill.settings import Settings

from .app import app
from .progress import BusyKey

KEY_PREFIX = "package:"


class Backlog:
    """The store of the demo's namespace."""

    def __init__(self) -> None:
        settings = Settings.of_app(app)
        self._client = redis.Redis.from_url(settings.redis_url)
        self._namespace = settings.namespace
        self._inspector = Inspector(self._client, settings.namespace)

    def clear(self) -> None:
        """Drop what an earlier run, broken off, left in the queue and in the store."""
        app.control.purge()
        for key in self._client.scan_iter(match=f"{{{self._namespace}}}:*", count=1000):
            self._client.unlink(key)

    def counts(self) -> Counts:
        """Tasks by state."""
        return self._inspector.counts()

    def busiest(self) -> tuple[BusyKey, ...]:
        """The packages that are held or waited for, those with the longest line first."""
        keys = (
            BusyKey(limit.key.removeprefix(KEY_PREFIX), limit.held, limit.blocked) for limit in self._inspector.limits()
        )
        return tuple(sorted(keys, key=lambda key: (-key.blocked, -key.held, key.package)))
