"""What the outbox says is read whole, bounded, and never refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from celery_backfill.deadletters import bounds
from celery_backfill.deadletters.fingerprint import fingerprint, masked, own_frame
from celery_backfill.deadletters.record import Failure, Resolution, parse

ENTRY = b"1700000000000-0"
LETTER = {
    "task_id": "t-1",
    "task": "shop.charge",
    "queue": "orders",
    "reason": "exhausted",
    "exception_type": "ValueError",
    "exception_message": "amount 12",
    "traceback": "",
    "retries": 3,
    "worker": "celery@one",
    "root_id": "root",
    "parent_id": None,
    "group_id": "group",
    "requeue": 2,
}
MESSAGE = json.dumps(
    [
        {"body": "", "headers": {"id": "t-9", "task": "shop.refund", "retries": 4}, "properties": {}},
        "",
        "refunds",
    ]
).encode()


def entry(**own: object) -> dict[bytes, bytes]:
    fields = {b"kind": b"failed", b"id": b"f-1", b"at": b"1700000000500", b"stalls": b"2", b"message": b"[]"}
    return {**fields, b"letter": json.dumps({**LETTER, **own}).encode()}


def failure(fields: dict[bytes, bytes]) -> Failure:
    found = parse(ENTRY, fields)
    assert isinstance(found, Failure)
    return found


def test_every_field_of_a_failure_is_read() -> None:
    found = failure(entry())
    assert (found.id, found.task_id, found.task, found.queue) == ("f-1", "t-1", "shop.charge", "orders")
    assert (found.reason, found.exception_type, found.exception_message) == ("exhausted", "ValueError", "amount 12")
    assert (found.retries, found.stalls, found.requeue, found.worker) == (3, 2, 2, "celery@one")
    assert (found.root_id, found.parent_id, found.group_id) == ("root", None, "group")
    assert found.message == b"[]"
    assert found.at == datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC)


def test_a_resolution_is_read() -> None:
    fields = {b"kind": b"resolved", b"id": b"r-1", b"at": b"1700000000500"}
    fields[b"letter"] = b'{"task_id": "t-1", "task": "shop.charge", "requeue": 3}'
    found = parse(ENTRY, fields)
    assert isinstance(found, Resolution)
    assert (found.id, found.task_id, found.requeue) == ("r-1", "t-1", 3)


@pytest.mark.parametrize("letter", [b"{", b"[]", b"null", b'"x"', b"\xff", b"", b"[" * 100_000])
def test_an_unreadable_letter_is_invalid_and_what_the_message_says_is_kept(letter: bytes) -> None:
    found = failure({b"kind": b"failed", b"id": b"f-1", b"message": MESSAGE, b"letter": letter})
    assert found.reason == "invalid"
    assert (found.task_id, found.task, found.queue, found.retries) == ("t-9", "shop.refund", "refunds", 4)
    assert found.message == MESSAGE


def test_what_a_script_leaves_out_of_a_letter_is_taken_from_the_message() -> None:
    """Poison is decided in a script, which knows no headers; its requeue number decides what the letter becomes."""
    letter = b'{"task_id": "t-1", "task": "shop.charge", "reason": "poison", "exception_type": "WorkerLostError"}'
    headers = {"id": "t-1", "task": "shop.charge", "backfill_requeue": 3, "root_id": "root", "group": "g"}
    message = json.dumps([{"body": "", "headers": headers, "properties": {}}, "", "orders"]).encode()
    found = failure({b"kind": b"failed", b"id": b"1", b"queue": b"orders-2", b"message": message, b"letter": letter})
    assert (found.reason, found.requeue, found.root_id, found.group_id) == ("poison", 3, "root", "g")


def test_details_of_an_unreadable_message_do_not_hide_what_it_says() -> None:
    message = json.dumps([{"headers": {"id": "t-1", "backfill_requeue": 3}, "properties": {}}, "", "orders"]).encode()
    letter = b'{"task": "shop.charge", "requeue": 0, "reason": "undecodable", "exception_type": "DecodeError"}'
    found = failure({b"kind": b"failed", b"message": message, b"letter": letter})
    assert (found.task_id, found.task, found.requeue, found.reason) == ("t-1", "shop.charge", 3, "undecodable")


def test_a_message_that_was_not_there_is_none() -> None:
    assert failure({**entry(), b"message": b""}).message is None


def test_a_failure_of_which_nothing_is_readable_is_still_one() -> None:
    found = failure({b"kind": b"failed", b"message": b"\x80\x04pickle", b"at": b"soon"})
    assert found.id == "entry:1700000000000-0"
    assert found.task_id == "unknown:entry:1700000000000-0"
    assert found.reason == "invalid"
    assert found.at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_a_missing_key_is_invalid_and_the_rest_is_kept() -> None:
    found = failure(entry(reason=None))
    assert found.reason == "invalid"
    assert (found.task_id, found.exception_type, found.requeue) == ("t-1", "ValueError", 2)


def test_an_entry_of_a_kind_from_the_future_is_not_touched() -> None:
    assert parse(ENTRY, {b"kind": b"endings", b"letter": b"{}"}) is None


def test_what_postgresql_refuses_is_cleaned() -> None:
    found = failure(entry(exception_message="a\0b\ud800c", task_id="t\0"))
    assert found.exception_message == "a\ufffdb?c"
    assert "\0" not in found.task_id


@pytest.mark.parametrize("number", [10**30, -1, "many", None, 1.5, [1], float("inf")])
def test_a_number_that_is_none_or_too_large_is_bounded(number: object) -> None:
    assert 0 <= failure(entry(retries=number)).retries <= bounds.LARGEST_INTEGER


def test_long_texts_are_cut_and_say_so() -> None:
    found = failure(entry(exception_message="é" * 50_000, traceback="first\n" + "x" * 100_000 + "\nlast"))
    assert len(found.exception_message.encode()) <= bounds.MESSAGE_BYTES
    assert found.exception_message.endswith("[cut: 100000 bytes in all]")
    assert len(found.traceback.encode()) <= bounds.TRACEBACK_BYTES
    assert found.traceback.startswith("first")
    assert found.traceback.endswith("last")
    assert "[cut: 100011 bytes in all]" in found.traceback


def test_long_names_stay_apart() -> None:
    one, other = failure(entry(task_id="x" * 5_000 + "1")), failure(entry(task_id="x" * 5_000 + "2"))
    assert one.task_id != other.task_id
    assert len(one.task_id.encode()) <= bounds.NAME_BYTES


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("amount 12 of 7.5", "amount 9 of 1,000.25"),
        ("no user 'ann'", 'no user "bob"'),
        ("order 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "order 9b2c61d2-0a4b-4b1e-8f33-1c2d3e4f5a6b"),
        ("object at 0x7f3a2c", "object at 0x55d01f"),
        ("commit 9fceb02d0ae598e95dc970b74767f19372d61af8", "commit 0123456789abcdef0123456789abcdef01234567"),
        ("can't open 'a.txt'", "can't open 'b.txt'"),
    ],
)
def test_what_differs_from_one_failure_to_the_next_does_not_split_a_group(one: str, other: str) -> None:
    assert masked(one) == masked(other)


def test_words_are_not_masked() -> None:
    assert masked("connection refused") != masked("connection reset")
    assert masked("can't read and won't write") == "can't read and won't write"
    assert masked("decade deadbeef facade") == "decade deadbeef facade"


def test_the_innermost_own_frame_survives_a_deploy() -> None:
    before = (
        '  File "/srv/releases/41/shop/billing.py", line 88, in charge\n    pay()\n'
        '  File "/srv/v/lib/python3.11/site-packages/gateway.py", line 5, in pay\n    raise\n'
    )
    after = before.replace("/41/", "/42/").replace("88", "91")
    assert own_frame(before) == own_frame(after) == "shop/billing.py:charge"
    assert own_frame("nothing like a traceback") == ""


def test_a_fingerprint_is_short_stable_hex() -> None:
    assert fingerprint("t", "E", "m 1", "") == fingerprint("t", "E", "m 2", "") == "eb9927a0429172c4"
    assert fingerprint("t", "E", "m", "") != fingerprint("u", "E", "m", "")
    assert fingerprint("t", "E", "m", "") != fingerprint("t", "F", "m", "")
