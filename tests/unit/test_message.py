"""The stored form of a message: that of kombu's Redis transport, and back again."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection, Queue

from celery_backfill.message import Envelope

words = st.text(max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers() | words, lambda inner: st.lists(inner, max_size=3))
tables = st.dictionaries(words.filter(lambda word: word != "body_encoding"), values, max_size=5)
envelopes = st.builds(
    Envelope,
    body=st.binary(max_size=200),
    content_type=words,
    content_encoding=words,
    headers=tables.filter(lambda table: "__type__" not in table),
    properties=tables,
    exchange=words,
    routing_key=words,
)


@given(envelopes)
def test_what_is_stored_is_read_back(envelope: Envelope) -> None:
    assert Envelope.decode(envelope.encode()) == envelope


def test_what_the_broker_keeps_of_an_unacked_message_can_be_read() -> None:
    """The admitting script copies that string as it is."""
    payload = {
        "body": base64.b64encode(b'[[1], {}, {"chain": null}]').decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "shop.one", "id": "7"},
        "properties": {"body_encoding": "base64", "priority": 3, "delivery_tag": "tag"},
    }
    envelope = Envelope.decode(json.dumps([payload, "", "main"]))
    assert envelope.body == b'[[1], {}, {"chain": null}]'
    assert envelope.properties == {"priority": 3, "delivery_tag": "tag"}
    assert (envelope.exchange, envelope.routing_key, envelope.headers["task"]) == ("", "main", "shop.one")


@pytest.mark.parametrize("body", [{"a": [1, "я"]}, "text", b"\x00\xff raw"])
def test_a_received_message_keeps_its_body_and_route(body: Any) -> None:
    with Connection("memory://") as connection:
        queue = Queue("main", routing_key="main")
        connection.Producer().publish(body, routing_key="main", declare=[queue], headers={"x": "y"}, priority=4)
        message = queue(connection.default_channel).get()
    envelope = Envelope.decode(Envelope.of_message(message).encode())
    raw = message.body.encode() if isinstance(message.body, str) else message.body
    assert (envelope.body, envelope.content_type, envelope.headers["x"]) == (raw, message.content_type, "y")
    assert (envelope.routing_key, envelope.properties["priority"]) == ("main", 4)


@pytest.mark.parametrize("text", ["", "{}", "[]", '["x", "", ""]', "[{}, 1]"])
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Envelope.decode(text)


def test_a_changed_copy_leaves_the_original() -> None:
    first = Envelope(b"", "application/json", "utf-8", {"a": 1})
    second = first.routed("ex", "key").with_headers(a=2, b=3)
    assert (second.exchange, second.routing_key, second.headers) == ("ex", "key", {"a": 2, "b": 3})
    assert (first.exchange, first.headers) == ("", {"a": 1})
