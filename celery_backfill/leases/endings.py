"""Ends that a script decided while no worker had the request: their Celery side is still to be done (F17)."""

from __future__ import annotations

from .stream import Stream


class Endings(Stream):
    """The endings of one namespace."""

    name, group = "endings", "announcers"

    def is_held(self, reader: str, entry_id: bytes) -> bool:
        """Whether an entry is this reader's: no other has taken it over, or finished it."""
        return bool(self._client.xpending_range(self._stream, self.group, entry_id, entry_id, 1, reader))

    def hold(self, reader: str, entry_id: bytes) -> bool:
        """Keep an entry for another while; False when it is not this reader's any more."""
        if not self.is_held(reader, entry_id):
            return False
        return bool(self._client.xclaim(self._stream, self.group, reader, 0, [entry_id], justid=True))
