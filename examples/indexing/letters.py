"""The dead letters of this demo, as the library keeps them in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from celery_backfill.deadletters import migrate
from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.letter import Filter, Group, Letter
from celery_backfill.deadletters.store import Letters
from celery_backfill.settings import Settings

from .app import app, index_file


class DemoLetters:
    """The dead letters of the demo's task that nobody has put aside."""

    def __init__(self) -> None:
        self._connections = OneConnection(Settings.of_app(app).postgres_url)
        self._letters = Letters(self._connections)
        self._ours = Filter(task=index_file.name, states=("dead",))

    def migrate(self) -> None:
        """Bring the tables up to date, as ``celery backfill migrate`` does."""
        migrate.migrate(self._connections)

    def put_aside(self) -> None:
        """Discard what earlier runs left, so that lists and groups show the coming run. Nothing is deleted."""
        for letter_id in self._letters.discardable(self._ours):
            self._letters.discard(letter_id)

    def list(self) -> Sequence[Letter]:
        """All of them."""
        return self._letters.find(self._ours)

    def groups(self) -> Sequence[Group]:
        """All of them, by group, the largest first."""
        return self._letters.groups(self._ours)
