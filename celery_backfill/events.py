"""What happened, as events. The core emits them; logs, metrics and Celery events subscribe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("celery_backfill")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: its action, how grave it is (a ``logging`` level), and its facts."""

    action: str
    level: int
    facts: Mapping[str, Any]


Subscriber = Callable[[Event], None]


def write_log(event: Event) -> None:
    """The subscriber that writes one log line an event."""
    if logger.isEnabledFor(event.level):
        facts = " ".join(f"{name}={value}" for name, value in event.facts.items())
        logger.log(event.level, "action=%s %s", event.action, facts, extra={"action": event.action})


_subscribers: list[Subscriber] = [write_log]


def subscribe(subscriber: Subscriber) -> None:
    """Call ``subscriber`` with each event from now on; what it raises is logged and stops nothing."""
    _subscribers.append(subscriber)


def unsubscribe(subscriber: Subscriber) -> None:
    """No longer call ``subscriber``."""
    _subscribers.remove(subscriber)


def emit(action: str, level: int = logging.INFO, /, **facts: Any) -> None:
    """Tell every subscriber."""
    event = Event(action, level, facts)
    for subscriber in tuple(_subscribers):
        try:
            subscriber(event)
        except Exception:
            logger.exception("a subscriber of events failed on %s", action)
