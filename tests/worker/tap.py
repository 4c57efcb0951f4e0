"""A TCP proxy before RabbitMQ that reads along: which messages are with a worker, unacked, and what the worker says."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from threading import Lock

from tests.worker.proxy import Link, TcpProxy

PORT = 5672
GREETING = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = 1
CONSUME, CANCEL, DELIVER, ACK, REJECT, NACK = (60, 20), (60, 30), (60, 60), (60, 80), (60, 90), (60, 120)
NAMES = {
    CONSUME: "consume", CANCEL: "cancel", DELIVER: "deliver", ACK: "ack", REJECT: "reject", NACK: "nack",
    (60, 10): "qos", (60, 40): "publish", (50, 10): "declare",
}  # fmt: skip
CHANNEL_ENDS = {(20, 40), (20, 41)}

Method = tuple[int, tuple[int, int], bytes]


class Frames:
    """AMQP frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def methods(self, chunk: bytes) -> Iterator[Method]:
        """The methods that are whole by now: channel, (class, method), arguments."""
        data = (self._rest + chunk).removeprefix(GREETING)
        at = 0
        while len(data) - at >= 7:
            kind, channel, size = struct.unpack_from(">BHI", data, at)
            if len(data) - at < size + 8:
                break
            if kind == METHOD_FRAME:
                yield channel, struct.unpack_from(">HH", data, at + 7), data[at + 11 : at + 7 + size]
            at += size + 8
        self._rest = data[at:]


class Tap(TcpProxy):
    """Knows of each delivery that passes until it is acked, rejected, or its channel or connection ends."""

    def __init__(self, amqp_url: str) -> None:
        self._book = Lock()
        self._unacked: dict[tuple[int, int, int], str] = {}
        #: How often the workers have said what, and how many deliveries they got.
        self.counts: Counter[str] = Counter()
        super().__init__(amqp_url, PORT)

    def unacked(self) -> list[str]:
        """The queues of the deliveries that are not acked, one for each delivery."""
        with self._book:
            return list(self._unacked.values())

    def link(self, client: socket.socket, server: socket.socket) -> Link:
        return _TappedLink(self, client, server)

    def delivered(self, link: int, channel: int, tag: int, queue: str) -> None:
        with self._book:
            self.counts["deliver"] += 1
            self._unacked[link, channel, tag] = queue

    def said(self, name: str) -> None:
        with self._book:
            self.counts[name] += 1

    def answered(self, link: int, channel: int, tag: int, *, multiple: bool) -> None:
        with self._book:
            tags = [tag]
            if multiple:
                tags = [known for on, at, known in self._unacked if (on, at) == (link, channel) and known <= tag]
            for one in tags:
                self._unacked.pop((link, channel, one), None)

    def ended(self, link: int, channel: int | None = None) -> None:
        with self._book:
            for name in [name for name in self._unacked if name[0] == link and channel in (None, name[1])]:
                del self._unacked[name]


class _TappedLink(Link):
    def __init__(self, tap: Tap, client: socket.socket, server: socket.socket) -> None:
        super().__init__(client, server)
        self._tap = tap
        self._calls, self._replies = Frames(), Frames()
        #: Queues by channel and consumer tag; not of consumers that never ack.
        self._queues: dict[tuple[int, str], str] = {}

    def called(self, chunk: bytes) -> None:
        for channel, method, args in self._calls.methods(chunk):
            if method in NAMES:
                self._tap.said(NAMES[method])
            if method == CONSUME:
                self._consume(channel, args)
            elif method in (ACK, REJECT, NACK):
                tag, multiple = struct.unpack_from(">QB", args)
                self._tap.answered(id(self), channel, tag, multiple=method != REJECT and bool(multiple & 1))
            elif method in CHANNEL_ENDS:
                self._tap.ended(id(self), channel)

    def replied(self, chunk: bytes) -> bool:
        for channel, method, args in self._replies.methods(chunk):
            if method == DELIVER:
                consumer, rest = _short_text(args)
                if queue := self._queues.get((channel, consumer)):
                    self._tap.delivered(id(self), channel, struct.unpack_from(">Q", rest)[0], queue)
            elif method in CHANNEL_ENDS:
                self._tap.ended(id(self), channel)
        return True

    def ended(self) -> None:
        self._tap.ended(id(self))

    def _consume(self, channel: int, args: bytes) -> None:
        queue, rest = _short_text(args[2:])
        consumer, rest = _short_text(rest)
        no_ack = rest[0] & 2
        if not no_ack:
            self._queues[channel, consumer] = queue


def _short_text(data: bytes) -> tuple[str, bytes]:
    end = 1 + data[0]
    return data[1:end].decode(), data[end:]
