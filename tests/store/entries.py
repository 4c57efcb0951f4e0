"""Outbox entries, written as the settling script writes them."""

from __future__ import annotations

import itertools
import json
from typing import Any

from celery_backfill.deadletters.record import Fact, parse
from celery_backfill.message import Envelope

Fields = dict[bytes, bytes]

_numbers = itertools.count(1)

TRACEBACK = """Traceback (most recent call last):
  File "/usr/lib/python3.11/asyncio/base.py", line 12, in run
    f()
  File "/srv/releases/41/shop/billing.py", line 88, in charge
    gateway.pay(amount)
  File "/srv/venv/lib/python3.11/site-packages/gateway/client.py", line 5, in pay
    raise ValueError(amount)
ValueError: amount 12
"""


def message(
    task_id: str = "t-1",
    queue: str = "orders",
    *,
    body: bytes = b'[[7, 100], {"currency": "EUR"}, {"callbacks": null, "chain": null, "chord": null}]',
    content_type: str = "application/json",
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
) -> Envelope:
    own = {"id": task_id, "task": "shop.charge", "retries": 3, "eta": "2026-01-01T00:00:00+00:00", "expires": None}
    return Envelope(
        body=body,
        content_type=content_type,
        content_encoding="utf-8" if content_type == "application/json" else "binary",
        headers={**own, "root_id": task_id, **(headers or {})},
        properties={"correlation_id": task_id, "reply_to": "reply-here", "priority": 6, **(properties or {})},
        exchange="",
        routing_key=queue,
    )


def failed(
    task_id: str = "t-1", *, at: int = 1_700_000_000_000, envelope: Envelope | None = None, **own: Any
) -> Fields:
    """A failure's entry; ``own`` replaces parts of its letter."""
    letter = {
        "task_id": task_id,
        "task": "shop.charge",
        "queue": "orders",
        "reason": "exhausted",
        "exception_type": "ValueError",
        "exception_message": "amount 12",
        "traceback": TRACEBACK,
        "retries": 3,
        "worker": "celery@one",
        "root_id": task_id,
        "requeue": 0,
    }
    return {
        b"kind": b"failed",
        b"id": f"f-{next(_numbers)}".encode(),
        b"at": str(at).encode(),
        b"stalls": b"1",
        b"message": (envelope or message(task_id)).encode().encode(),
        b"letter": json.dumps({**letter, **own}).encode(),
    }


def resolved(task_id: str, requeue: int, *, at: int = 1_700_000_900_000) -> Fields:
    """A resolution's entry."""
    letter = {"task_id": task_id, "task": "shop.charge", "requeue": requeue}
    return {
        b"kind": b"resolved",
        b"id": f"r-{next(_numbers)}".encode(),
        b"at": str(at).encode(),
        b"letter": json.dumps(letter).encode(),
    }


def fact(fields: Fields) -> Fact:
    """What an entry says."""
    found = parse(b"1700000000000-0", fields)
    assert found is not None
    return found


def failure(task_id: str = "t-1", **own: Any) -> Fact:
    return fact(failed(task_id, **own))


def resolution(task_id: str, requeue: int) -> Fact:
    return fact(resolved(task_id, requeue))
