"""The outbox: final failures and resolutions on their way from the settling script to PostgreSQL.

An entry may be read twice; recording it twice is one (see ``deadletters``).
"""

from __future__ import annotations

from .stream import Stream


class Outbox(Stream):
    """The outbox of one namespace."""

    name, group = "outbox", "shippers"
