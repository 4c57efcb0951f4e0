"""What a server's facts mean for the lease store. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import MovedError, NoPermissionError, OutOfMemoryError

from ..findings import Finding

OLDEST_REDIS = (7, 0)
SLOW_SECONDS = 0.1
SKEW_SECONDS = 1.0
NEARLY_FULL = 0.9
WAITED_SECONDS = 60.0
NO_SHEBANG = "near '#'"

LOST = "everything blocked, scheduled, waiting for a retry or not yet shipped to PostgreSQL"
BY_HAND = "the server does not tell this user ({}); check by hand: {}"
UPGRADE = "use Redis 7.0 or newer, or any Valkey"


@dataclass(frozen=True, slots=True)
class Probe:
    """What ``doctor.lua`` found: the server's run id ("" when it may not know), and forbidden (command, key) pairs."""

    run_id: str
    forbidden: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a server said; an exception stands where it refused to.

    ``ahead``: seconds by which this host's clock is ahead of the server's, None when it did not tell; ``round_trip`` in
    seconds; ``waiting``: entries in the outbox, the oldest from ``oldest_ms``.
    """

    place: str
    namespace: str
    access_rule: str
    round_trip: float
    ahead: float | None
    info: Mapping[str, Any] | Exception
    config: Mapping[str, str] | Exception
    probe: Probe | Exception
    waiting: int
    oldest_ms: int | None


def judge(facts: Facts, lease_seconds: float, now: float) -> list[Finding]:
    """All findings; ``now`` is the time of this host in seconds."""
    found = [_answers(facts)]
    for name, look, by_hand in _FROM_INFO:
        if isinstance(facts.info, Exception):
            found.append(Finding(name, "warning", BY_HAND.format(facts.info, by_hand)))
        else:
            found += look(facts.info, facts)
    if isinstance(facts.config, Exception):
        text = BY_HAND.format(facts.config, "CONFIG GET save, CONFIG GET min-replicas-to-write")
        found.append(Finding("redis_config", "info", text))
    return [*found, *_scripts(facts), _clock(facts, lease_seconds), _outbox(facts, now)]


def _answers(facts: Facts) -> Finding:
    text = f"{facts.place} answers in {facts.round_trip * 1000:.1f} ms"
    if facts.round_trip < SLOW_SECONDS:
        return Finding("redis", "ok", text)
    advice = "every start and end of a task waits for one such round trip; use a server nearer to the workers"
    return Finding("redis", "warning", text, advice)


def _scripts(facts: Facts) -> list[Finding]:
    probe = facts.probe
    if isinstance(probe, Exception):
        return [_refused(probe, facts)]
    return [Finding("redis_scripts", "ok", "scripts are loaded and run"), _rights(probe, facts)]


def _rights(probe: Probe, facts: Facts) -> Finding:
    missing: dict[str, list[str]] = {}
    for command, key in probe.forbidden:
        if command != "INFO":
            missing.setdefault(key, []).append(command.split()[0])
    if missing:
        what = "; ".join(f"{', '.join(names)} on {key}" for key, names in missing.items())
        return Finding("redis_rights", "error", f"this user may not call {what}", facts.access_rule)
    if not probe.run_id:
        text = "scripts may not call INFO, so a restart of the server is noticed only by what it lost"
        return Finding("redis_rights", "warning", text, facts.access_rule)
    return Finding("redis_rights", "ok", "this user may call all that is needed")


def _refused(error: Exception, facts: Facts) -> Finding:
    words = str(error).splitlines()[0][:300]
    if NO_SHEBANG in words:
        return Finding("redis_scripts", "error", f"the server is too old for our scripts: {words}", UPGRADE, fatal=True)
    if isinstance(error, NoPermissionError):
        return Finding("redis_rights", "error", f"scripts are forbidden: {words}", facts.access_rule)
    if isinstance(error, MovedError):
        text = f"the keys of {facts.namespace!r} live on {error.host}:{error.port}, and workers do not follow there"
        return Finding("redis_cluster", "error", text, f"put {error.host}:{error.port} into backfill_redis_url")
    if isinstance(error, OutOfMemoryError):
        text = f"memory is full, so new tasks are refused (those in the store go on): {words}"
        return Finding("redis_scripts", "error", text, "CONFIG SET maxmemory to more")
    return Finding("redis_scripts", "error", f"scripts are refused: {words}")


def _version(info: Mapping[str, Any], facts: Facts) -> list[Finding]:
    if valkey := info.get("valkey_version"):
        return [Finding("redis_version", "ok", f"Valkey {valkey}")]
    version = str(info.get("redis_version", ""))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not parts:
        return [Finding("redis_version", "warning", "the server does not tell its version", UPGRADE)]
    if parts < OLDEST_REDIS:
        return [Finding("redis_version", "error", f"Redis {version} is too old for our scripts", UPGRADE, fatal=True)]
    return [Finding("redis_version", "ok", f"Redis {version}")]


def _persistence(info: Mapping[str, Any], facts: Facts) -> list[Finding]:
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            text = f"the append-only file cannot be written; a restart loses {LOST}"
            return [Finding("redis_persistence", "error", text, "look at the server's disk and log")]
        return [Finding("redis_persistence", "ok", "the append-only file is on")]
    snapshots = isinstance(facts.config, Exception) or facts.config.get("save")
    since = " since the last snapshot, if any is taken" if snapshots else ""
    advice = "in redis.conf: appendonly yes; now: CONFIG SET appendonly yes, then CONFIG REWRITE"
    text = f"the append-only file is off: a restart loses {LOST}{since}"
    return [Finding("redis_persistence", "warning", text, advice)]


def _eviction(info: Mapping[str, Any], facts: Facts) -> list[Finding]:
    policy = info.get("maxmemory_policy")
    if policy in ("noeviction", None):
        text = (
            "nothing is evicted" if policy else "the server does not tell its maxmemory-policy; it must be noeviction"
        )
        return [Finding("redis_eviction", "ok" if policy else "warning", text)]
    when = "when memory is full" if info.get("maxmemory") else "as soon as a maxmemory is set"
    what = (
        "tasks and leases"
        if str(policy).startswith("allkeys")
        else "what it knows of tasks that have ended, and they may run twice"
    )
    advice = "in redis.conf: maxmemory-policy noeviction; now: CONFIG SET maxmemory-policy noeviction"
    text = f"maxmemory-policy is {policy}: {when} the server throws away {what}"
    return [Finding("redis_eviction", "error", text, advice)]


def _memory(info: Mapping[str, Any], facts: Facts) -> list[Finding]:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return [Finding("redis_memory", "ok", f"{_mb(used)} used; no maxmemory is set")]
    text = f"{_mb(used)} of {_mb(most)} used"
    if used < NEARLY_FULL * most:
        return [Finding("redis_memory", "ok", text)]
    advice = "raise maxmemory: when it is full new tasks wait at the broker; those in the store go on"
    return [Finding("redis_memory", "warning", text, advice)]


def _replication(info: Mapping[str, Any], facts: Facts) -> list[Finding]:
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
        text = "this is a Sentinel and holds no data"
        return [Finding("redis_replication", "error", text, "put the server it watches into backfill_redis_url")]
    if info.get("role", "master") != "master":
        text = f"this is a replica of {info.get('master_host')}:{info.get('master_port')}, and takes no writes"
        return [Finding("redis_replication", "error", text, "put the primary into backfill_redis_url")]
    replicas = int(info.get("connected_slaves", 0))
    if not replicas:
        return [Finding("redis_replication", "ok", "a primary without replicas")]
    text = (
        f"a primary with {replicas} replicas: a failover can lose its last writes, and may exceed limits for one lease"
    )
    config = {} if isinstance(facts.config, Exception) else facts.config
    if config.get("min-replicas-to-write", "0") != "0":
        return [Finding("redis_replication", "ok", f"{text}; min-replicas-to-write bounds it")]
    advice = "in redis.conf: min-replicas-to-write 1 and min-replicas-max-lag 10 bound what is lost"
    return [Finding("redis_replication", "info", text, advice)]


def _cluster(info: Mapping[str, Any], facts: Facts) -> list[Finding]:
    if not info.get("cluster_enabled") or isinstance(facts.probe, MovedError):
        return []
    text = "a cluster: all our keys are on one node, which is this one; workers do not follow when they move elsewhere"
    return [Finding("redis_cluster", "warning", text, "use a server of its own, without cluster mode")]


def _clock(facts: Facts, lease_seconds: float) -> Finding:
    if facts.ahead is None:
        return Finding("redis_clock", "warning", BY_HAND.format("TIME is forbidden", "both hosts' clocks agree"))
    off = abs(facts.ahead)
    which = "ahead of" if facts.ahead > 0 else "behind"
    text = f"this host's clock is {off:.1f} s {which} the server's"
    surely = off - facts.round_trip / 2
    if surely <= SKEW_SECONDS:
        return Finding("redis_clock", "ok", f"this host's clock and the server's agree within {SKEW_SECONDS:g} s")
    advice = (
        "let both keep time (NTP): leases go by the server's clock only, but eta, expires and logs go by this host's"
    )
    return Finding("redis_clock", "error" if surely > lease_seconds / 3 else "warning", text, advice)


def _outbox(facts: Facts, now: float) -> Finding:
    if not facts.waiting or facts.oldest_ms is None:
        return Finding("outbox", "ok", "no failure waits to be shipped to PostgreSQL")
    age = now - (facts.ahead or 0.0) - facts.oldest_ms / 1000
    text = f"{facts.waiting} failures wait to be shipped to PostgreSQL, the oldest for {age:.0f} s"
    if age < WAITED_SECONDS:
        return Finding("outbox", "ok", text)
    advice = "a worker ships them when it runs and reaches PostgreSQL; look for action=dead_letters_wait in its log"
    return Finding("outbox", "warning", text, advice)


def _mb(size: int) -> str:
    return f"{size / 2**20:.0f} MB"


_Look = Callable[[Mapping[str, Any], Facts], list[Finding]]
_FROM_INFO: tuple[tuple[str, _Look, str], ...] = (
    ("redis_version", _version, "Redis 7.0 or newer, or Valkey"),
    ("redis_persistence", _persistence, "appendonly yes"),
    ("redis_eviction", _eviction, "maxmemory-policy noeviction"),
    ("redis_memory", _memory, "used memory is well below maxmemory"),
    ("redis_replication", _replication, "it is a primary"),
    ("redis_cluster", _cluster, "it is no cluster"),
)
