"""The one reader of ``app.conf``: every ``backfill_*`` setting, checked once, at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from .errors import ConfigurationError

RENEWALS_PER_LEASE = 3

DEFAULTS: Mapping[str, Any] = {
    "backfill_redis_url": None,
    "backfill_postgres_url": None,
    "backfill_namespace": "backfill",
    "backfill_lease_seconds": 15.0,
    "backfill_max_stalls": 3,
    "backfill_strict": False,
    "backfill_on_lease_lost": "raise",
    "backfill_early_recovery": True,
    "backfill_limits": {},
    "backfill_non_retryable_for": (),
    "backfill_dead_letter": "all",
    "backfill_dedupe_seconds": None,
    "backfill_redact": ("password", "token", "secret", "authorization"),
}

#: What becomes of a run whose lease is lost: it is told by an exception, or its process is killed (prefork).
ON_LEASE_LOST = ("raise", "kill")
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
POSTGRES_SCHEMES = ("postgresql://", "postgres://")
KOMBU_SOCKET_SCHEME = "redis+socket://"
DEFAULT_VISIBILITY_TIMEOUT = 3600


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one app. Durations are in seconds."""

    redis_url: str
    postgres_url: str
    namespace: str
    lease_seconds: float
    max_stalls: int
    strict: bool
    on_lease_lost: str
    early_recovery: bool
    limits: Mapping[str, int]
    non_retryable_for: tuple[Any, ...]
    dead_letter: str
    dedupe_seconds: float
    redact: tuple[str, ...]
    broker_is_store: bool

    @classmethod
    def of_app(cls, app: Any) -> Settings:
        """The settings of ``app``, read once. Raises ``ConfigurationError``."""
        app = getattr(app, "_get_current_object", lambda: app)()
        settings = _READ.get(app)
        if settings is None:
            settings = _READ[app] = cls.of(app)
        return settings

    @classmethod
    def of(cls, app: Any) -> Settings:
        """Read and check the settings of ``app``. Raises ``ConfigurationError``."""
        given = {name: app.conf.get(name, default) for name, default in DEFAULTS.items()}
        broker = _broker_url(app)
        redis_url = _redis_url(given["backfill_redis_url"], broker)
        return cls(
            redis_url=redis_url,
            postgres_url=_postgres_url(given["backfill_postgres_url"]),
            namespace=_namespace(given["backfill_namespace"]),
            lease_seconds=_lease_seconds(given["backfill_lease_seconds"]),
            max_stalls=_whole("backfill_max_stalls", given["backfill_max_stalls"], least=0),
            strict=_flag("backfill_strict", given["backfill_strict"]),
            on_lease_lost=_one_of("backfill_on_lease_lost", given["backfill_on_lease_lost"], ON_LEASE_LOST),
            early_recovery=_flag("backfill_early_recovery", given["backfill_early_recovery"]),
            limits=_limits(given["backfill_limits"]),
            non_retryable_for=_classes(given["backfill_non_retryable_for"]),
            dead_letter=_one_of("backfill_dead_letter", given["backfill_dead_letter"], ("all", "backfill")),
            dedupe_seconds=_dedupe_seconds(app, given["backfill_dedupe_seconds"]),
            redact=tuple(str(name).lower() for name in given["backfill_redact"]),
            broker_is_store=redis_url == broker and not _has_own_keys(app),
        )


def _broker_url(app: Any) -> str:
    """The broker's URL, as redis-py would write it where the broker is Redis."""
    url: str = app.connection_for_read().as_uri(include_password=True)
    if url.startswith(KOMBU_SOCKET_SCHEME):
        return "unix://" + url[len(KOMBU_SOCKET_SCHEME) :]
    return url


def _has_own_keys(app: Any) -> bool:
    """Whether the broker keeps its unacked messages elsewhere than where kombu does by default."""
    options = app.conf.broker_transport_options or {}
    return any(options.get(name) for name in ("global_keyprefix", "unacked_key", "unacked_index_key"))


def _redis_url(given: Any, broker: str) -> str:
    if given is None and broker.startswith(REDIS_SCHEMES):
        return broker
    if given is None:
        raise ConfigurationError(
            "backfill_redis_url is not set and the broker is not Redis. "
            'Write, for example: app.conf.backfill_redis_url = "redis://localhost:6379/0"'
        )
    if not str(given).startswith(REDIS_SCHEMES):
        raise ConfigurationError(f"backfill_redis_url must start with one of {', '.join(REDIS_SCHEMES)}")
    return str(given)


def _postgres_url(given: Any) -> str:
    if not given or not str(given).startswith(POSTGRES_SCHEMES):
        raise ConfigurationError(
            "backfill_postgres_url is not set or is not a PostgreSQL URL. "
            'Write, for example: app.conf.backfill_postgres_url = "postgresql://user@localhost/app"'
        )
    return str(given)


def _namespace(given: Any) -> str:
    text = str(given)
    if not text or any(char in "{}" or char.isspace() for char in text):
        raise ConfigurationError(f"backfill_namespace must be a word without braces or spaces, not {given!r}")
    return text


def check_lease_seconds(name: str, given: Any) -> None:
    """Raises ``ConfigurationError`` for a length that a lease cannot have. None is none of its own."""
    if given is None:
        return
    if not isinstance(given, int | float) or isinstance(given, bool) or given < RENEWALS_PER_LEASE:
        raise ConfigurationError(
            f"{name} must be a number of at least {RENEWALS_PER_LEASE}, not {given!r}: "
            f"a lease is renewed {RENEWALS_PER_LEASE} times in its length, at most once a second"
        )


def _lease_seconds(given: Any) -> float:
    check_lease_seconds("backfill_lease_seconds", 0 if given is None else given)
    return float(given)


def _whole(name: str, given: Any, *, least: int) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {given!r}")
    return given


def _flag(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise ConfigurationError(f"{name} must be True or False, not {given!r}")
    return given


def _limits(given: Any) -> Mapping[str, int]:
    if not isinstance(given, Mapping):
        raise ConfigurationError('backfill_limits must be a dict, for example {"tenant:*": 2}')
    return {str(key): _whole(f"backfill_limits[{key!r}]", value, least=1) for key, value in given.items()}


def _classes(given: Any) -> tuple[Any, ...]:
    classes = tuple(given) if isinstance(given, list | tuple | set | frozenset) else (given,)
    for entry in classes:
        if not (isinstance(entry, str) or (isinstance(entry, type) and issubclass(entry, BaseException))):
            raise ConfigurationError(
                f"backfill_non_retryable_for takes exception classes or dotted names, not {entry!r}"
            )
    return classes


def _one_of(name: str, given: Any, choices: tuple[str, ...]) -> str:
    if given not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, choices))}, not {given!r}")
    return str(given)


def _dedupe_seconds(app: Any, given: Any) -> float:
    """How long a settled attempt is remembered: at least twice the broker's visibility timeout."""
    options = app.conf.broker_transport_options or {}
    least = 2 * float(options.get("visibility_timeout", DEFAULT_VISIBILITY_TIMEOUT))
    if given is None:
        return least
    if not isinstance(given, int | float) or given < least:
        raise ConfigurationError(
            f"backfill_dedupe_seconds must be at least twice the broker's visibility timeout ({least:g}), not {given!r}"
        )
    return float(given)


_READ: WeakKeyDictionary[Any, Settings] = WeakKeyDictionary()
