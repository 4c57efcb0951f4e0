"""A Redis that loses replies on command: a TCP proxy that closes a connection instead of passing on an answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from urllib.parse import urlsplit, urlunsplit

from celery_backfill.leases.script import Script

CHUNK = 65536


class Proxy:
    """Stands between workers and one Redis; ``url`` is its own."""

    def __init__(self, redis_url: str) -> None:
        parts = urlsplit(redis_url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._listener = socket.create_server(("127.0.0.1", 0))
        login = parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=f"{login}@{place}" if login else place))
        self._lock = Lock()
        self._digests: tuple[bytes, ...] = ()
        self._left = 0
        self.lost = 0
        self._sockets: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def lose_replies(self, scripts: Sequence[Script], times: int) -> None:
        """The server runs the next so many calls of these scripts, and nobody hears of it."""
        with self._lock:
            self._digests = tuple(script.digest.encode() for script in scripts)
            self._left, self.lost = times, 0

    def close(self) -> None:
        """Close every connection."""
        for open_socket in (self._listener, *self._sockets):
            _close(open_socket)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += (client, server)
                doomed: list[bool] = []
                Thread(target=self._pass_calls, args=(client, server, doomed), daemon=True).start()
                Thread(target=self._pass_replies, args=(client, server, doomed), daemon=True).start()

    def _pass_calls(self, client: socket.socket, server: socket.socket, doomed: list[bool]) -> None:
        with suppress(OSError):
            while chunk := client.recv(CHUNK):
                if not doomed and self._is_to_lose(chunk):
                    doomed.append(True)
                server.sendall(chunk)
        _close(server)

    def _pass_replies(self, client: socket.socket, server: socket.socket, doomed: list[bool]) -> None:
        with suppress(OSError):
            while (chunk := server.recv(CHUNK)) and not doomed:
                client.sendall(chunk)
        if doomed:
            self.lost += 1
        _close(client)
        _close(server)

    def _is_to_lose(self, chunk: bytes) -> bool:
        with self._lock:
            if self._left and any(digest in chunk for digest in self._digests):
                self._left -= 1
                return True
            return False


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def proxy_to(redis_url: str) -> Iterator[Proxy]:
    """A proxy, closed at the end."""
    proxy = Proxy(redis_url)
    try:
        yield proxy
    finally:
        proxy.close()
