"""Text made fit for PostgreSQL: no NUL, no lone surrogates, no more than its share of bytes."""

from __future__ import annotations

import hashlib

MESSAGE_BYTES = 10_000
TRACEBACK_BYTES = 64_000
NAME_BYTES = 1_000
LARGEST_INTEGER = 2**31 - 1


def clean(text: str) -> str:
    """``text`` without what PostgreSQL's text refuses: NUL and lone surrogates become replacement marks."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def cut_end(text: str, most: int = MESSAGE_BYTES) -> str:
    """At most ``most`` bytes of UTF-8 from the start, and a mark with the whole size when some were cut."""
    raw = clean(text).encode()
    if len(raw) <= most:
        return raw.decode()
    mark = f" ... [cut: {len(raw)} bytes in all]"
    return raw[: most - len(mark)].decode("utf-8", "ignore") + mark


def cut_middle(text: str, most: int = TRACEBACK_BYTES) -> str:
    """At most ``most`` bytes of UTF-8: a traceback says where it began and, above all, where it ended."""
    raw = clean(text).encode()
    if len(raw) <= most:
        return raw.decode()
    mark = f"\n... [cut: {len(raw)} bytes in all]\n"
    head = (most - len(mark)) // 4
    tail = most - len(mark) - head
    return raw[:head].decode("utf-8", "ignore") + mark + raw[-tail:].decode("utf-8", "ignore")


def name(text: str) -> str:
    """An identifier short enough for an index. Two that differ stay different: the cut part is hashed."""
    raw = clean(text).encode()
    if len(raw) <= NAME_BYTES:
        return raw.decode()
    digest = hashlib.sha256(raw).hexdigest()
    return raw[: NAME_BYTES - len(digest) - 1].decode("utf-8", "ignore") + "~" + digest


def integer(value: object) -> int:
    """A count from 0 to the largest PostgreSQL integer. What is not a number counts as 0."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return 0
    return max(0, min(LARGEST_INTEGER, int(number)))
