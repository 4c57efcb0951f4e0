"""Asks a Redis whether it can be the lease store: one connection, a handful of commands, nothing changed.

What the server refuses to tell (managed services forbid CONFIG, an access list may forbid INFO) is a finding too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from time import perf_counter, time
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from ..findings import ESCAPES, Finding, is_ambiguous, said
from .diagnosis import Facts, Probe, judge
from .script import ALL, Script

SAMPLES = 3

DOCTOR = Script.load("doctor")

_CALL = re.compile(r"redis\.p?call\('([A-Z]+)'")
#: What is called beside the scripts, by the outbox's reader and by views, with the words that come before the key.
_BESIDE = (
    *("XREADGROUP GROUP group reader STREAMS", "XGROUP CREATE", "XAUTOCLAIM", "XACK", "XDEL", "XLEN", "XRANGE"),
    *("ZCARD", "ZRANGE", "SMEMBERS", "HMGET", "TIME", "INFO", "MULTI", "EXEC"),
)
#: What a connection needs before it comes to that: without these there is no answer to judge.
_FIRST = ("client|setinfo", "client|setname", "evalsha", "script|load", "select")
_OF_BROKER = (("ZREM", 0), ("HGET", 1), ("HDEL", 1))


def examine(
    url: str, namespace: str, *, lease_seconds: float, broker_keys: Sequence[str] = (), timeout: float = 5.0
) -> list[Finding]:
    """Everything that matters of the server at ``url``. Raises nothing.

    ``broker_keys`` are the broker's unacked index and unacked hash where the store acks there; ``timeout`` seconds
    bound each wait for the server.
    """
    try:
        client: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            client_name="celery_backfill",
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        return [Finding("redis", "error", "backfill_redis_url (or the broker's URL) cannot be read", ESCAPES)]
    try:
        with client:
            return judge(_ask(client, url, namespace, broker_keys), lease_seconds, time())
    except (RedisError, OSError) as error:
        return [_no_answer(error, url)]


def shown(url: str) -> str:
    """``url`` as it may be printed: scheme, host, port and path only."""
    if is_ambiguous(url):
        return "redis://..."
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def commands() -> list[str]:
    """Every command on the namespace, in upper case, with the words that come before its key."""
    in_scripts = {name for script in ALL for name in _CALL.findall(script.text)}
    return sorted({*in_scripts, *_BESIDE})


def access_rule(user: str | None, namespace: str, broker_keys: Iterable[str] = ()) -> str:
    """The least that an access list has to allow a user, as an ``ACL SETUSER`` command."""
    first = [command.split()[0].lower() for command in commands()]
    names = {"xgroup|create" if name == "xgroup" else name for name in first}
    keys = " ".join(f"~{key}" for key in (f"{{{namespace}}}:*", *broker_keys))
    return f"ACL SETUSER {user or 'default'} {keys} {' '.join(f'+{name}' for name in sorted({*names, *_FIRST}))}"


def _ask(client: Any, url: str, namespace: str, broker_keys: Sequence[str]) -> Facts:
    prefix = f"{{{namespace}}}:"
    calls = [(command, f"{prefix}*") for command in commands()]
    calls += [(command, broker_keys[place]) for command, place in _OF_BROKER if broker_keys]
    _sample(client)
    round_trip, ahead = min((_sample(client) for _ in range(SAMPLES)), key=lambda sample: sample[0])
    with client.pipeline(transaction=False) as pipe:
        pipe.info()
        pipe.config_get("save")
        pipe.config_get("min-replicas-to-write")
        pipe.execute_command("SCRIPT LOAD", DOCTOR.text)
        pipe.execute_command("EVALSHA", DOCTOR.digest, 1, prefix, *(word for call in calls for word in call))
        pipe.xlen(f"{prefix}outbox")
        pipe.xrange(f"{prefix}outbox", count=1)
        info, save, replicas, loaded, probe, waiting, oldest = pipe.execute(raise_on_error=False)
    return Facts(
        place=shown(url),
        namespace=namespace,
        access_rule=access_rule(client.get_connection_kwargs().get("username"), namespace, broker_keys),
        round_trip=round_trip,
        ahead=ahead,
        info=info,
        config=save
        if isinstance(save, Exception)
        else replicas
        if isinstance(replicas, Exception)
        else save | replicas,
        probe=_probed(loaded, probe, calls),
        waiting=waiting if isinstance(waiting, int) else 0,
        oldest_ms=_milliseconds(oldest),
    )


def _probed(loaded: Any, answer: Any, calls: Sequence[tuple[str, str]]) -> Probe | Exception:
    """What the script found; why it was not loaded, or not run."""
    for refusal in (loaded, answer):
        if isinstance(refusal, Exception):
            return refusal
    run_id, *forbidden = answer
    return Probe(run_id.decode(), tuple(calls[number] for number in forbidden))


def _sample(client: Any) -> tuple[float, float | None]:
    """Seconds of one round trip, and how far this host's clock is ahead of the server's (None: it does not tell)."""
    began = perf_counter()
    try:
        seconds, micros = client.time()
    except ResponseError:
        return perf_counter() - began, None
    took = perf_counter() - began
    return took, time() - took / 2 - (int(seconds) + int(micros) / 1e6)


def _milliseconds(entries: Any) -> int | None:
    """When a stream's first entry was written."""
    return int(entries[0][0].split(b"-")[0]) if isinstance(entries, list) and entries else None


def _no_answer(error: Exception, url: str) -> Finding:
    place, words = shown(url), said(error, url)
    if isinstance(error, BusyLoadingError):
        return Finding("redis", "error", f"{place} is loading its data", "wait until it has; workers wait too")
    if isinstance(error, AuthenticationError | ResponseError):
        advice = f"check the user and password in backfill_redis_url (or the broker's URL); {ESCAPES}"
        return Finding("redis", "error", f"{place} refuses: {words}", advice)
    advice = "start the server, or correct backfill_redis_url (or the broker's URL)"
    if is_ambiguous(url):
        advice += f"; {ESCAPES}"
    return Finding("redis", "error", f"{place} does not answer: {words}", advice)
