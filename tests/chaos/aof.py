"""Reads a server's append-only files: every effect it had, one transaction after the other.

A script's effects are one transaction. So this is what the store really did, whatever anybody was told of it, and no
connection was needed to see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

Command = list[bytes]


def transactions(data: Path) -> Iterator[list[Command]]:
    """What was written to the files of one data folder, in order; a last one that is not whole was never applied."""
    pending: list[Command] | None = None
    for command in _commands(data):
        name = command[0] = command[0].upper()
        if name == b"MULTI":
            pending = []
        elif name == b"EXEC":
            yield pending or []
            pending = None
        elif pending is not None:
            pending.append(command)
        else:
            yield [command]


def _commands(data: Path) -> Iterator[Command]:
    files = data.glob("appendonlydir/*.incr.aof")
    for path in sorted(files, key=lambda path: int(path.name.split(".")[-3])):
        with path.open("rb") as file:
            while (command := _command(file)) is not None:
                yield command


def _command(file: BinaryIO) -> Command | None:
    line = file.readline()
    while line.startswith(b"#"):
        line = file.readline()
    if not line.endswith(b"\r\n"):
        return None
    words = [_word(file) for _ in range(int(line[1:]))]
    return None if None in words else [word for word in words if word is not None]


def _word(file: BinaryIO) -> bytes | None:
    line = file.readline()
    if not line.endswith(b"\r\n"):
        return None
    size = int(line[1:])
    word = file.read(size + 2)
    return word[:size] if len(word) == size + 2 else None
