"""What is counted in one Python source file. Knows nothing of Celery: the tasks and the check both use it."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


class UnparsableError(ValueError):
    """The parser gave up on the source for another reason than its syntax."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The size of one file: its lines, syntax tree nodes, functions (async ones too) and classes."""

    lines: int
    nodes: int
    functions: int
    classes: int


def index(path: str) -> Counts:
    """Read and count the file at ``path``. Raises ``OSError``, ``SyntaxError`` or ``ValueError``."""
    return count(Path(path).read_bytes())


def count(source: bytes) -> Counts:
    """Parse ``source`` and count it. Raises ``SyntaxError`` or ``ValueError`` when it does not parse."""
    kinds = Counter(map(type, ast.walk(_tree(source))))
    return Counts(
        lines=len(source.splitlines()),
        nodes=kinds.total(),
        functions=kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        classes=kinds[ast.ClassDef],
    )


def _tree(source: bytes) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in other people's code are none of our business
        try:
            return ast.parse(source)
        except (RecursionError, MemoryError) as exc:  # how the parser says "nested too deeply"
            raise UnparsableError(f"nested too deeply: {type(exc).__name__}") from exc
