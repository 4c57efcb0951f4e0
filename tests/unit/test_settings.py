"""Settings are read once and checked at start; what is wrong says what to write."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_backfill.errors import ConfigurationError
from celery_backfill.settings import Settings

POSTGRES = "postgresql://user@localhost/app"


def read(broker: str = "redis://localhost:6379/3", **conf: Any) -> Settings:
    app = Celery("settings", broker=broker, set_as_current=False)
    app.conf.update({"backfill_postgres_url": POSTGRES, **conf})
    return Settings.of(app)


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = read()
    assert settings.redis_url == "redis://localhost:6379/3"
    assert (settings.namespace, settings.lease_seconds, settings.max_stalls) == ("backfill", 15.0, 3)
    assert (settings.limits, settings.non_retryable_for, settings.dead_letter) == ({}, (), "all")
    assert settings.redact == ("password", "token", "secret", "authorization")
    assert settings.broker_is_store


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"backfill_redis_url": "http://localhost"}, "must start with one of redis://"),
        ({"backfill_postgres_url": None}, "backfill_postgres_url is not set"),
        ({"backfill_postgres_url": "mysql://localhost"}, "is not a PostgreSQL URL"),
        ({"backfill_namespace": ""}, "must be a word"),
        ({"backfill_namespace": "two words"}, "must be a word"),
        ({"backfill_namespace": "{brace}"}, "must be a word"),
        ({"backfill_lease_seconds": 2.9}, "at least 3"),
        ({"backfill_lease_seconds": "15"}, "at least 3"),
        ({"backfill_lease_seconds": True}, "at least 3"),
        ({"backfill_max_stalls": -1}, "backfill_max_stalls must be a whole number of at least 0"),
        ({"backfill_limits": [("a", 1)]}, "must be a dict"),
        ({"backfill_limits": {"a": 0}}, r"backfill_limits\['a'\]"),
        ({"backfill_non_retryable_for": (7,)}, "takes exception classes or dotted names"),
        ({"backfill_non_retryable_for": (int,)}, "takes exception classes or dotted names"),
        ({"backfill_dead_letter": "some"}, "must be one of 'all', 'backfill'"),
        ({"backfill_dedupe_seconds": 60}, "at least twice the broker's visibility timeout"),
    ],
)
def test_what_cannot_work_is_refused(conf: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read(**conf)


def test_another_broker_needs_a_redis() -> None:
    with pytest.raises(ConfigurationError, match="backfill_redis_url is not set and the broker is not Redis"):
        read(broker="amqp://localhost")
    settings = read(broker="amqp://localhost", backfill_redis_url="redis://localhost/0")
    assert not settings.broker_is_store


@pytest.mark.parametrize(
    "conf",
    [
        {"backfill_redis_url": "redis://localhost:6379/4"},
        {"broker_transport_options": {"global_keyprefix": "shop:"}},
        {"broker_transport_options": {"unacked_key": "other"}},
        {"broker_transport_options": {"unacked_index_key": "other"}},
    ],
)
def test_the_store_acks_at_the_broker_only_where_it_knows_its_keys(conf: dict[str, Any]) -> None:
    assert not read(**conf).broker_is_store


def test_an_attempt_is_remembered_for_twice_the_visibility_timeout() -> None:
    """F3."""
    assert read().dedupe_seconds == 2 * 3600
    assert read(broker_transport_options={"visibility_timeout": 60}).dedupe_seconds == 120
    assert read(backfill_dedupe_seconds=9000).dedupe_seconds == 9000


def test_one_class_may_be_given_without_a_list() -> None:
    assert read(backfill_non_retryable_for=ValueError).non_retryable_for == (ValueError,)
    assert read(backfill_non_retryable_for="shop.Declined").non_retryable_for == ("shop.Declined",)


def test_an_apps_settings_are_read_once() -> None:
    app = Celery("once", broker="redis://localhost", set_as_current=False)
    app.conf.backfill_postgres_url = POSTGRES
    first = Settings.of_app(app)
    app.conf.backfill_namespace = "later"
    assert Settings.of_app(app) is first


def test_a_password_in_a_url_is_in_no_message() -> None:
    """X6."""
    with pytest.raises(ConfigurationError) as caught:
        read(backfill_redis_url="http://user:hunter2@localhost", backfill_postgres_url="mysql://u:hunter2@h")
    assert "hunter2" not in str(caught.value)
