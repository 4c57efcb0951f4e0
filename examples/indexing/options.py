"""The command line of the demo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. ``paths`` empty: the standard library and the installed packages."""

    json: bool
    workers: int
    concurrency: int
    limit: int
    paths: tuple[Path, ...]
    max_files: int | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line. Leaves the program with 2 when it is wrong."""
    given = _parser().parse_args(arguments)
    return Options(
        json=given.json,
        workers=given.workers,
        concurrency=given.concurrency,
        limit=given.limit,
        paths=tuple(path.resolve() for path in given.path),
        max_files=given.max_files,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.indexing", description="Index Python files with Celery.")
    parser.add_argument("--json", action="store_true", help="print nothing but the figures, as one JSON object")
    parser.add_argument("--limit", type=_count, default=2, metavar="N", help="files of a package at once (default: 2)")
    parser.add_argument("--concurrency", type=_count, default=4, metavar="N", help="processes a worker (default: 4)")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="Celery workers (default: 1)")
    parser.add_argument(
        "--path",
        type=_folder,
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="index these folders instead of the standard library and the installed packages",
    )
    parser.add_argument("--max-files", type=_count, metavar="N", help="index only N files, spread evenly over all")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path
