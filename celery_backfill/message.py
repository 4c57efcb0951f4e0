"""A task message as it is kept: whole, in one string, and able to be sent again.

The form is the one kombu's Redis transport keeps for an unacked message: the JSON array
``[payload, exchange, routing_key]``, where ``payload`` has ``body``, ``content-type``,
``content-encoding``, ``headers`` and ``properties``. Where broker and store are one Redis the server
copies that string without the worker touching it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from kombu.utils.json import dumps, loads


@dataclass(frozen=True, slots=True)
class Envelope:
    """One task message: what a broker delivered, or what is to be published.

    ``body`` is the raw body, never decoded here; ``properties`` are the broker's message properties
    (priority, correlation_id, reply_to, ...).
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: Mapping[str, Any]
    properties: Mapping[str, Any] = field(default_factory=dict)
    exchange: str = ""
    routing_key: str = ""

    @classmethod
    def of_message(cls, message: Any) -> Self:
        """The envelope of a received ``kombu.Message``."""
        info = message.delivery_info or {}
        body = message.body
        return cls(
            body=body.encode() if isinstance(body, str) else bytes(body),
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            # kombu has decompressed the body already.
            headers={name: value for name, value in message.headers.items() if name != "compression"},
            # On AMQP the headers are a property too.
            properties={
                name: value for name, value in (message.properties or {}).items() if name != "application_headers"
            },
            exchange=info.get("exchange") or "",
            routing_key=info.get("routing_key") or "",
        )

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        """Read the stored form. Raises ``ValueError`` when it is not one."""
        payload, exchange, routing_key = loads(text)
        properties = dict(payload["properties"])
        encoding = properties.pop("body_encoding", None)
        body = payload.get("body") or ""
        return cls(
            body=base64.b64decode(body) if encoding == "base64" else body.encode(),
            content_type=payload.get("content-type") or "",
            content_encoding=payload.get("content-encoding") or "",
            headers=payload.get("headers") or {},
            properties=properties,
            exchange=exchange or "",
            routing_key=routing_key or "",
        )

    def encode(self) -> str:
        """The stored form."""
        payload = {
            "body": base64.b64encode(self.body).decode("ascii"),
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": dict(self.headers),
            "properties": {**self.properties, "body_encoding": "base64"},
        }
        text: str = dumps([payload, self.exchange, self.routing_key])
        return text

    def routed(self, exchange: str, routing_key: str) -> Self:
        """The same message to another exchange and routing key."""
        return replace(self, exchange=exchange, routing_key=routing_key)

    def with_headers(self, **headers: Any) -> Self:
        """The same message with some headers replaced."""
        return replace(self, headers={**self.headers, **headers})
