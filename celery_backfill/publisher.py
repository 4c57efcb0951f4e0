"""Sends a kept message again, byte for byte, without ever decoding its body."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from kombu import Producer

from .errors import RequeueError
from .message import Envelope

PERSISTENT = 2

# What a delivery adds to a message, and what holds only for who sent it first (RabbitMQ checks ``user_id``).
_OF_THE_DELIVERY = frozenset({"delivery_info", "delivery_tag", "body_encoding", "redelivered", "user_id"})
# Arguments of kombu's publish(): as a property's name they would mean something else.
_ARGUMENTS = frozenset(inspect.signature(Producer.publish).parameters) | {"application_headers"}
_NOT_REPEATED = _OF_THE_DELIVERY | _ARGUMENTS


class Publisher:
    """Publishes kept messages of one app over one connection; a context manager, for one thread.

    A message goes to its own exchange and routing key with its own priority, headers, properties and body; it starts
    anew: ``retries`` 0, no ``eta``, no ``expires`` that has passed (nor the time to live that Celery makes of it).
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __call__(self, envelope: Envelope, *, requeue_id: str, requeue: int) -> None:
        """Publish a message as requeue number ``requeue``, under the id by which workers know it from others.

        Raises ``RequeueError`` when it surely was not sent. Any other error leaves that open.
        """
        channel = self._channel()
        try:
            declare = self._declared(envelope)
        except KeyError as error:
            raise RequeueError(
                f"this app does not know the queue {envelope.routing_key!r}; name it in task_queues"
            ) from error
        try:
            self._send(channel, envelope, fresh_headers(envelope, requeue_id, requeue), declare)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _channel(self) -> Any:
        try:
            if self._connection is None:
                self._connection = self._opened()
            return self._connection.default_channel
        except Exception as error:
            self.close()
            raise RequeueError(f"the broker cannot be reached ({type(error).__name__})") from error

    def _opened(self) -> Any:
        connection = self._app.connection_for_write()
        if connection.transport.driver_type == "amqp":
            # Without it a message sent over a connection that is just being lost is gone without an error.
            connection.transport_options.setdefault("confirm_publish", True)
        return connection.ensure_connection(max_retries=1, timeout=5)

    def _send(self, channel: Any, envelope: Envelope, headers: dict[str, Any], declare: list[Any]) -> None:
        properties = envelope.properties
        producer = self._app.amqp.Producer(channel, auto_declare=False)
        producer.publish(
            envelope.body,
            exchange=envelope.exchange,
            routing_key=envelope.routing_key,
            declare=declare,
            content_type=envelope.content_type or "application/data",
            content_encoding=envelope.content_encoding or "binary",
            headers=headers,
            priority=properties.get("priority"),
            delivery_mode=PERSISTENT,
            expiration=None if _is_past(envelope.headers.get("expires")) else _seconds(properties.get("expiration")),
            retry=False,
            **{name: value for name, value in properties.items() if name not in _NOT_REPEATED},
        )

    def _declared(self, envelope: Envelope) -> list[Any]:
        """What Celery would declare. Raises ``KeyError`` for a queue that the app neither knows nor may make."""
        if not envelope.exchange:
            return [self._app.amqp.queues[envelope.routing_key]]
        queues = [queue for queue in self._app.amqp.queues.values() if queue.exchange.name == envelope.exchange]
        bound = [queue for queue in queues if queue.routing_key == envelope.routing_key and not queue.auto_delete]
        return bound or [queue.exchange for queue in queues[:1]]


def fresh_headers(envelope: Envelope, requeue_id: str, requeue: int) -> dict[str, Any]:
    """The message's headers as those of a first attempt that is a requeue."""
    headers = {**envelope.headers, "retries": 0, "eta": None}
    if _is_past(headers.get("expires")):
        headers["expires"] = None
    return {**headers, "backfill_id": requeue_id, "backfill_requeue": requeue}


def _is_past(expires: Any) -> bool:
    """Whether a message's ``expires`` has passed. One that cannot be read counts as passed: else it never runs."""
    if expires is None:
        return False
    try:
        at = expires if isinstance(expires, datetime) else datetime.fromisoformat(str(expires))
    except ValueError:
        return True
    return (at if at.tzinfo else at.replace(tzinfo=UTC)) <= datetime.now(UTC)


def _seconds(expiration: Any) -> float | None:
    """A broker's time to live, which is written in milliseconds."""
    try:
        return int(expiration) / 1000 if expiration else None
    except (TypeError, ValueError):
        return None
