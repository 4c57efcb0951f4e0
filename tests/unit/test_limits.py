"""Keys and capacities."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from celery_backfill import Limit
from celery_backfill.errors import ConfigurationError, InvalidKeyError
from celery_backfill.limits import MAX_KEY_BYTES, Arguments, capacity_of, check_key


def sync(tenant_id: int, region: str = "eu", *rest: int, page: int = 1, **others: Any) -> None:
    """The task that the keys below are for."""


def resolve(key: Any, *args: Any, **kwargs: Any) -> str:
    return Limit(key, 1).resolve(Arguments(inspect.signature(sync), args, kwargs))


@pytest.mark.parametrize(
    ("template", "args", "kwargs", "key"),
    [
        ("tenant:{tenant_id}", (7,), {}, "tenant:7"),
        ("tenant:{tenant_id}", (), {"tenant_id": 7}, "tenant:7"),
        ("{tenant_id}:{region}:{page}", (7,), {}, "7:eu:1"),
        ("{region}", (7, "us"), {"region": "ignored by no one"}, "ignored by no one"),
        ("{tenant_id:03d}", (7,), {}, "007"),
        ("{tenant_id[id]}", ({"id": 9},), {}, "9"),
        ("{other}", (7,), {"other": "x"}, "x"),
        ("stripe", (7,), {}, "stripe"),
        ("{{{tenant_id}}}", (7,), {}, "{7}"),
        ("ключ *\n{tenant_id}", ("я",), {}, "ключ *\nя"),
        (lambda args, kwargs: f"{args[0]}-{kwargs['page']}", (7,), {"page": 3}, "7-3"),
    ],
)
def test_a_key_is_made_of_a_calls_arguments(template: Any, args: Any, kwargs: Any, key: str) -> None:
    """L12: whatever the text."""
    assert resolve(template, *args, **kwargs) == key


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("tenant:{nobody}", "no argument 'nobody'; the call has"),
        ("{tenant_id.missing}", "missing"),
        ("{region[9]}", "index"),
        (lambda args, kwargs: args[5], "index"),
        (lambda args, kwargs: None, "must be text"),
        (lambda args, kwargs: "", "not empty"),
    ],
)
def test_a_key_that_cannot_be_made_says_why(template: Any, words: str) -> None:
    """L15."""
    with pytest.raises(InvalidKeyError, match=words):
        resolve(template, 7)


def test_a_key_has_a_length() -> None:
    """L12: in bytes."""
    assert check_key("я" * (MAX_KEY_BYTES // 2))
    with pytest.raises(InvalidKeyError, match="hash longer ones"):
        check_key("я" * (MAX_KEY_BYTES // 2) + "x")


@pytest.mark.parametrize("capacity", [0, -1, 1.5, "2", None, True])
def test_a_capacity_is_a_whole_number(capacity: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency_limit must be a whole number"):
        Limit("key", capacity)


@pytest.mark.parametrize("key", ["", None, 7])
def test_a_key_is_a_template_or_a_callable(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency_key must be"):
        Limit(key, 1)


def test_the_settings_capacity_wins_over_the_tasks() -> None:
    configured = {"tenant:vip": 9, "tenant:*": 3}
    assert capacity_of("tenant:vip", 1, configured) == 9
    assert capacity_of("tenant:7", 1, configured) == 3
    assert capacity_of("other", 1, configured) == 1
