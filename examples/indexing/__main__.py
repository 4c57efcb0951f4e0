"""``python -m examples.indexing``: run the demo; 0 when all went as promised, 1 when not, 130 when interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import FrameType

from rich.console import Console

from celery_backfill.errors import BackfillError

from . import report
from .errors import DemoFailedError
from .figures import Figures
from .options import Options, parse
from .view import view_for

INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and show what came out. Answers the exit code."""
    options = parse(arguments)
    errors = Console(stderr=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        figures = _run(options)
    except (DemoFailedError, BackfillError) as exc:
        errors.print(f"The demo failed: {exc}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted; the workers are stopped.")
        return INTERRUPTED
    _show(figures, options)
    if figures.problems:
        report.show_problems(errors, figures)
    return 1 if figures.problems else 0


def _run(options: Options) -> Figures:
    console = Console()
    os.environ["INDEXING_LIMIT"] = str(options.limit)
    with view_for(console, limit=options.limit, quiet=options.json) as view:
        view.phase("Starting Valkey and PostgreSQL")
        from .run import run  # starts the servers, and takes the limit from the environment

        return run(options, view)


def _show(figures: Figures, options: Options) -> None:
    if options.json:
        print(json.dumps(asdict(figures)))
    else:
        report.show(Console(), figures)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
