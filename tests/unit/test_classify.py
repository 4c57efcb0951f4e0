"""Which exceptions are permanent, and who decides."""

from __future__ import annotations

import pytest

from celery_backfill import NonRetryableError
from celery_backfill.classify import Rule, classify


class Declined(Exception):
    pass


class CardExpired(Declined):
    pass


class Marked(Exception):
    retryable = False


class Both(Declined, OSError):
    pass


@pytest.mark.parametrize(
    ("exc", "task", "retryable", "app", "permanent", "rule"),
    [
        pytest.param(ValueError(), (), (), (), False, "nobody", id="nobody speaks"),
        pytest.param(Declined(), (Declined,), (), (), True, "non_retryable_for", id="declared"),
        pytest.param(CardExpired(), (Declined,), (), (), True, "non_retryable_for", id="K1 a subclass"),
        pytest.param(CardExpired(), (Declined,), (CardExpired,), (), False, "retryable_for", id="K2 the nearest wins"),
        pytest.param(CardExpired(), (CardExpired,), (Declined,), (), True, "non_retryable_for", id="K2 the other way"),
        pytest.param(Declined(), (Declined,), (Declined,), (), True, "non_retryable_for", id="K2 of one class"),
        pytest.param(Both(), (OSError,), (Declined,), (), False, "retryable_for", id="K2 the MRO's order"),
        pytest.param(KeyError(), (LookupError,), (), (), True, "non_retryable_for", id="a base of the library's"),
        pytest.param(Declined(), (), (), (Declined,), True, "backfill_non_retryable_for", id="app-wide"),
        pytest.param(CardExpired(), (), (Declined,), (CardExpired,), False, "retryable_for", id="K2 task before app"),
        pytest.param(NonRetryableError(), (), (NonRetryableError,), (), True, "exception", id="K2 raise-site first"),
        pytest.param(Marked(), (), (Exception,), (), True, "exception", id="an attribute of its own"),
    ],
)
def test_the_verdict_and_who_decided(
    exc: Exception,
    task: tuple[Rule, ...],
    retryable: tuple[Rule, ...],
    app: tuple[Rule, ...],
    permanent: bool,
    rule: str,
) -> None:
    verdict = classify(exc, non_retryable_for=task, retryable_for=retryable, app_non_retryable_for=app)
    assert verdict == (permanent, rule)


@pytest.mark.parametrize("name", ["ValueError", "builtins.ValueError", f"{__name__}.Declined"])
def test_rules_may_be_dotted_names(name: str) -> None:
    exc = Declined() if name.endswith("Declined") else ValueError()
    assert classify(exc, non_retryable_for=[name]).permanent


def test_a_name_matches_a_base_class_too() -> None:
    """K1."""
    assert classify(CardExpired(), non_retryable_for=[f"{__name__}.Declined"]).permanent


@pytest.mark.parametrize("name", ["not_installed.errors.Gone", "Declined", "errors.ValueError", ""])
def test_names_of_what_is_not_there_are_never_imported_and_match_nothing(name: str) -> None:
    """K6."""
    assert classify(Declined(), non_retryable_for=[name]) == (False, "nobody")
