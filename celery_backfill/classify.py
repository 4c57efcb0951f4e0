"""Which exceptions are permanent. Pure: an exception and the declared rules in, a verdict out.

In this order, the first that speaks decides:

1. the exception itself: ``NonRetryableError``, or any exception with an attribute ``retryable = False``;
2. the task's ``non_retryable_for`` and ``retryable_for``: the nearest class in the exception's MRO wins, and of the
   same class ``non_retryable_for``;
3. the app's ``backfill_non_retryable_for``;
4. nobody: Celery's own rules (``autoretry_for``, ``retry()``) go on.

Rules are classes, or dotted names that are compared with the names of the exception's classes and never imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Rule = type[BaseException] | str


class Verdict(NamedTuple):
    """``permanent`` stops retries; ``rule`` says who decided (``"nobody"``: Celery's own rules go on)."""

    permanent: bool
    rule: str


def classify(
    exc: BaseException,
    *,
    non_retryable_for: Iterable[Rule] = (),
    retryable_for: Iterable[Rule] = (),
    app_non_retryable_for: Iterable[Rule] = (),
) -> Verdict:
    """Whether ``exc`` is permanent, and which rule said so."""
    if getattr(exc, "retryable", None) is False:
        return Verdict(True, "exception")
    permanent, retryable = tuple(non_retryable_for), tuple(retryable_for)
    for cls in type(exc).__mro__:
        if _names(cls, permanent):
            return Verdict(True, "non_retryable_for")
        if _names(cls, retryable):
            return Verdict(False, "retryable_for")
    everywhere = tuple(app_non_retryable_for)
    if any(_names(cls, everywhere) for cls in type(exc).__mro__):
        return Verdict(True, "backfill_non_retryable_for")
    return Verdict(False, "nobody")


def _names(cls: type, rules: tuple[Rule, ...]) -> bool:
    dotted = f"{cls.__module__}.{cls.__qualname__}"
    return any(rule is cls or rule == dotted or f"builtins.{rule}" == dotted for rule in rules)
