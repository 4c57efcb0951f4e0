"""What must be true of the stored state at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .stored import Stored

ALONE = (
    *("leases", "sched", "b", "seq", "token", "outbox", "endings"),
    *("workers", "pulse", "epoch", "awaited", "unacked", "unacked_index"),
)
PREFIXES = ("a:", "h:", "l:", "kq:", "t:", "w:", "r:", "k:", "d:", "n:")


def wrong_with(stored: Stored) -> Iterator[str]:
    """Each promise that this state breaks, in words."""
    yield from _permits(stored)
    for attempt in stored.records:
        yield from _place(stored, attempt)
    yield from _strangers(stored)
    yield from _lines(stored)
    yield from _turns(stored)
    yield from _counters(stored)
    yield from _names(stored)


def limits(record: dict[str, str]) -> list[tuple[str, int]]:
    return [(key, capacity) for key, capacity in json.loads(record["limits"])] if record["limits"] else []


def line_of(record: dict[str, str]) -> tuple[str, str]:
    """(queue, key) of the line that an attempt waits in."""
    keys = [key for key, _ in limits(record)]
    return record["queue"], keys[0] if keys else ""


def may_run(stored: Stored, record: dict[str, str]) -> bool:
    """Whether all limits of an attempt have room."""
    return all(len(stored.permits.get(key, ())) < room for key, room in limits(record))


def _permits(stored: Stored) -> Iterator[str]:
    for key, holders in stored.permits.items():
        for attempt in holders:
            if attempt not in stored.tokens:
                yield f"invariant 1: {attempt} has a permit of {key} and no lease"
    for attempt in stored.tokens:
        for key, _ in limits(stored.records[attempt]):
            if attempt not in stored.permits.get(key, ()):
                yield f"invariant 1: {attempt} runs without its permit of {key}"


def _place(stored: Stored, attempt: str) -> Iterator[str]:
    """An attempt is in one place, and its record says so (invariant 2)."""
    record = stored.records[attempt]
    workers = [worker for worker, held in stored.held.items() if attempt in held]
    lines = [line for line, waiting in stored.lines.items() if attempt in waiting]
    found = ["running"] * (attempt in stored.leases) + ["blocked"] * len(lines)
    found += ["scheduled"] * (attempt in stored.sched)
    if found != [record.get("state")]:
        yield f"invariant 2: {attempt} is {record.get('state')} by its record and {found} by the lists"
    if (attempt in stored.tokens) != (record.get("state") == "running"):
        yield f"invariant 2: {attempt} is {record.get('state')} with token {record.get('token')!r}"
    if workers != ([record["worker"]] if attempt in stored.tokens else []):
        yield f"invariant 2: {attempt} is noted as a lease of {workers}"
    elif workers and stored.held[workers[0]][attempt].token != stored.tokens[attempt]:
        yield f"invariant 2: {attempt} is noted at its worker under another token"
    for line in lines:
        if line != line_of(record):
            yield f"invariant 2: {attempt} waits in {line}, its record says {line_of(record)}"
        elif stored.lines[line][attempt] != int(float(record["score"])):
            yield f"F12: {attempt} waits at another place than its record says"


def _strangers(stored: Stored) -> Iterator[str]:
    lists = [*stored.lines.values(), *stored.held.values(), stored.leases, stored.sched]
    for attempt in {attempt for members in lists for attempt in members} - set(stored.records):
        yield f"invariant 2: {attempt} is in a list and has no record"


def _lines(stored: Stored) -> Iterator[str]:
    """The indexes name the lines that there are."""
    queues: dict[str, set[str]] = {}
    for queue, key in stored.lines:
        queues.setdefault(key, set()).add(queue)
    if set(stored.entries.get("b", ())) != set(queues):
        yield f"F10: b has {sorted(stored.entries.get('b', ()))}, keys with a line are {sorted(queues)}"
    named = {name[3:]: set(value) for name, value in stored.entries.items() if name.startswith("kq:")}
    if named != queues:
        yield f"F10: kq has {named}, the lines are {queues}"


def _turns(stored: Stored) -> Iterator[str]:
    """Invariant 4: what may run is found, and nothing else."""
    heads = {line: min(waiting, key=lambda name: waiting[name]) for line, waiting in stored.lines.items()}
    runnable = {
        line for line, head in heads.items() if head in stored.records and may_run(stored, stored.records[head])
    }
    for line in runnable - set(stored.turns):
        yield f"invariant 4: the head of {line} may run and the turn list does not know"
    for line in set(stored.turns) - runnable:
        yield f"invariant 4: the turn list names {line}, whose head may not run"
    if len(set(stored.turns.values())) != len(stored.turns):
        yield f"F10: two lines have the same turn: {stored.turns}"


def _counters(stored: Stored) -> Iterator[str]:
    if any(token > max(stored.token, stored.adopted) for token in stored.tokens.values()):
        yield "F26: a token is higher than the counters of tokens"
    if any(turn > stored.seq for turn in stored.turns.values()):
        yield "F10: a turn is higher than the counter of arrivals"


def _names(stored: Stored) -> Iterator[str]:
    """No key is left that nobody will delete."""
    for name in stored.entries:
        if name not in ALONE and not name.startswith(PREFIXES):
            yield f"a key that the store does not know: {name}"
    for name in stored.entries:
        if name.startswith("d:") and not stored.entries[name][1]:
            yield f"F3: {name} is kept for ever"
    if not stored.records:
        left = [name for name in stored.entries if name.startswith(("h:", "l:", "kq:", "t:", "w:"))]
        if left + [name for name in ("leases", "sched", "b") if name in stored.entries]:
            yield f"nothing is left to do and {left} is left"
