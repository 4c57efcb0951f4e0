"""Which files the demo indexes, and which package each belongs to."""

from __future__ import annotations

import os
import sysconfig
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Installed packages lie below the standard library where there is no virtual environment.
NOT_ENTERED = {"__pycache__", "site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to index: the id of its task in this run, the package whose limit it counts against, and its path."""

    task_id: str
    package: str
    path: str


def standard_roots() -> list[Path]:
    """The standard library and the installed packages of the running interpreter."""
    found = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    return list(dict.fromkeys(found))


def collect(roots: Iterable[Path], *, run: uuid.UUID, at_most: int | None = None) -> list[SourceFile]:
    """Every ``*.py`` file below ``roots`` in order, or ``at_most`` of them, spread evenly over all.

    The package is the topmost folder or module below the root. Task ids come from ``run``: another run has others.
    """
    found = list(dict.fromkeys((package, str(path)) for root in roots for package, path in _below(root)))
    chosen = found if at_most is None else _spread(found, at_most)
    return [
        SourceFile(str(uuid.uuid5(run, str(number))), package, path) for number, (package, path) in enumerate(chosen)
    ]


def _below(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_ENTERED)
        for name in sorted(names):
            path = Path(folder, name)
            # A dangling link is a file that cannot be read, and belongs here; a pipe would be waited for without end.
            if path.suffix == ".py" and (path.is_file() or path.is_symlink()):
                yield path.relative_to(root).parts[0].removesuffix(".py"), path


def _spread(found: Sequence[tuple[str, str]], at_most: int) -> Sequence[tuple[str, str]]:
    if at_most >= len(found):
        return found
    return [found[position * len(found) // at_most] for position in range(at_most)]
