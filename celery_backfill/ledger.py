"""What a worker's main process and its pool's processes tell each other about the leases they run, in shared memory.

The main process renews leases; the task's own process must know until when it may go on, also while the other one is
stopped. The memory is anonymous, made before the pool forks. Times are ``time.monotonic()``, which all processes of a
machine share. Each value is written and read as one aligned word.
"""

from __future__ import annotations

import os
from collections import deque
from enum import IntEnum
from mmap import mmap
from struct import Struct

ROWS = 16_384
ROW_BYTES = 32

_TOKEN, _UNTIL, _LOST, _STAGE = 0, 8, 16, 17
_WORD, _TIME, _BYTE = Struct("@Q"), Struct("@d"), Struct("@B")


class Stage(IntEnum):
    """How far a run has come, written by the process that runs it: what a process that died had done before (F19)."""

    RUNNING = 0
    RETURNED = 1
    """The body has returned; its result may have been stored."""
    RAISED = 2
    """The body has raised what is final; the failure may have been stored."""
    SUCCEEDED = 3
    """Celery has stored its success, and sent what follows."""
    FAILED = 4
    """Celery has stored its failure."""


class Ledger:
    """Rows of leases. One process opens and closes them; any process that shares the memory may look."""

    def __init__(self, rows: int = ROWS) -> None:
        #: The process that made it: the worker's main one.
        self.owner_pid = os.getpid()
        self._memory = mmap(-1, rows * ROW_BYTES)
        self._free = deque(range(rows))

    def open(self, token: int, until: float) -> Row | None:
        """A row for a lease that its holder may count on until then; None when all rows are taken."""
        try:
            row = Row(self._memory, self._free.popleft(), token)
        except IndexError:
            return None
        row._begin(until)
        return row

    def close(self, row: Row | None) -> None:
        """The lease is over: who still has the row finds it lost."""
        if row is not None:
            row._end()
            self._free.append(row.index)

    def row(self, index: int, token: int) -> Row:
        """A row as another process sees it."""
        return Row(self._memory, index, token)


class Row:
    """One lease in the ledger. It is this token's only while it bears it."""

    __slots__ = ("_at", "_memory", "index", "token")

    def __init__(self, memory: mmap, index: int, token: int) -> None:
        self._memory, self._at = memory, index * ROW_BYTES
        self.index, self.token = index, token

    @property
    def lost(self) -> bool:
        """Whether the lease is known to be somebody else's, or over."""
        token = _WORD.unpack_from(self._memory, self._at + _TOKEN)[0]
        return token != self.token or bool(self._memory[self._at + _LOST])

    @property
    def until(self) -> float:
        """When its holder can no longer count on it unless it is renewed."""
        return float(_TIME.unpack_from(self._memory, self._at + _UNTIL)[0])

    @property
    def stage(self) -> Stage:
        """How far the run has come."""
        return Stage(self._memory[self._at + _STAGE])

    def renew(self, until: float) -> None:
        """It is good until then."""
        _TIME.pack_into(self._memory, self._at + _UNTIL, until)

    def lose(self) -> None:
        """It is somebody else's."""
        _BYTE.pack_into(self._memory, self._at + _LOST, 1)

    def reach(self, stage: Stage) -> None:
        """The run has come so far."""
        if not self.lost:
            _BYTE.pack_into(self._memory, self._at + _STAGE, stage)

    def _begin(self, until: float) -> None:
        self.renew(until)
        _BYTE.pack_into(self._memory, self._at + _LOST, 0)
        _BYTE.pack_into(self._memory, self._at + _STAGE, Stage.RUNNING)
        _WORD.pack_into(self._memory, self._at + _TOKEN, self.token)

    def _end(self) -> None:
        _WORD.pack_into(self._memory, self._at + _TOKEN, 0)


#: The ledger of the worker that this process belongs to.
shared: Ledger | None = None


def share() -> Ledger:
    """Make the ledger of this worker, before its pool forks."""
    global shared
    shared = Ledger()
    return shared


def in_child() -> bool:
    """Whether this is a process of a worker's pool."""
    return shared is not None and shared.owner_pid != os.getpid()
