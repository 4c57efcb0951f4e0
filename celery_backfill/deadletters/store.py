"""The dead letters in PostgreSQL: recording what happened, and reading it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import groupby
from typing import Any, TypeVar

from psycopg.rows import class_row

from . import bounds
from .connections import Connection, Connections, OneConnection, transaction
from .letter import STATES, Filter, Group, Letter, PastFailure
from .record import Fact, Failure
from .statements import statement

T = TypeVar("T")
LARGEST_ID = 2**63 - 1


class Letters:
    """All dead letters of one database.

    Every method is one transaction. Each may raise ``LettersUnavailableError`` (safe to repeat) and ``SchemaError``
    (the tables are missing).
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @classmethod
    def at(cls, url: str) -> Letters:
        """The letters at ``url``, over one connection. Does not connect yet."""
        return cls(OneConnection(url))

    def record(self, facts: Sequence[Fact]) -> list[str]:
        """Store failures and resolutions, all or none, and answer the ids of the failures that were new.

        Recording the same failure again changes nothing. Raises ``LetterRefusedError`` when PostgreSQL refuses one
        of them for its data.
        """
        # All writers touch letters in the same order, so that they wait for each other but never in a circle.
        ordered = sorted(facts, key=lambda fact: (fact.task_id, fact.at, fact.id))
        new: list[str] = []
        with self._transaction() as connection:
            for kind, run in groupby(ordered, key=type):
                if kind is Failure:
                    new += _record_failures(connection, run)
                else:
                    _resolve(connection, run)
        return new

    def get(self, id_or_task_id: int | str) -> Letter | None:
        """The letter with that id or, if there is none, with that task id."""
        text = str(id_or_task_id)
        found = self._read(Letter, "get", {"id": _letter_id(text), "task_id": bounds.name(text)})
        return found[0] if found else None

    def message(self, letter_id: int) -> bytes | None:
        """The letter's whole message in its stored form; None when it could not be kept."""
        with self._transaction() as connection:
            row = connection.execute(statement("message"), {"id": letter_id}).fetchone()
        return row[0] if row else None

    def history(self, task_id: str) -> list[PastFailure]:
        """Every failure of that task id, newest first."""
        return self._read(PastFailure, "history", {"task_id": bounds.name(task_id)})

    def find(self, which: Filter, limit: int | None = None) -> list[Letter]:
        """The letters meant, newest failure first."""
        return self._read(Letter, "find", {**which.parameters(), "limit": limit})

    def groups(self, which: Filter, limit: int | None = None) -> list[Group]:
        """The letters meant, by group, the most frequent group first."""
        return self._read(Group, "groups", {**which.parameters(), "limit": limit})

    def count(self, which: Filter) -> int:
        """How many letters are meant."""
        with self._transaction() as connection:
            row = connection.execute(statement("count"), which.parameters()).fetchone()
        return int(row[0]) if row else 0

    def counts(self) -> dict[str, int]:
        """How many letters there are in each state; every state is named."""
        with self._transaction() as connection:
            found = dict(connection.execute(statement("counts")).fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def discardable(self, which: Filter, limit: int | None = None) -> Sequence[int]:
        """The ids of the letters meant that can be discarded, oldest failure first."""
        with self._transaction() as connection:
            rows = connection.execute(statement("discardable"), {**which.parameters(), "limit": limit}).fetchall()
        return [row[0] for row in rows]

    def discard(self, letter_id: int) -> bool:
        """Put a dead letter aside; False, and nothing is changed, when it is not dead. A new failure brings it back."""
        with self._transaction() as connection:
            return connection.execute(statement("discard"), {"id": letter_id}).fetchone() is not None

    def _read(self, kind: type[T], name: str, parameters: dict[str, Any]) -> list[T]:
        with self._transaction() as connection, connection.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(statement(name), parameters).fetchall()

    def _transaction(self) -> AbstractContextManager[Connection]:
        return transaction(self._connections)


def _letter_id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(LARGEST_ID)):
        return None
    return int(text) if int(text) <= LARGEST_ID else None


def _record_failures(connection: Connection, failures: Iterable[Any]) -> list[str]:
    new: list[str] = []
    with connection.cursor() as cursor:
        cursor.executemany(statement("record_failure"), [asdict(failure) for failure in failures], returning=True)
        for result in cursor.results():
            new += [row[0] for row in result.fetchall()]
    return new


def _resolve(connection: Connection, resolutions: Iterable[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(statement("resolve"), [asdict(resolution) for resolution in resolutions])
