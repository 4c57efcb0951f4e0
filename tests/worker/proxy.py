"""TCP proxies between workers and a server: to cut connections, and to lose or count what passes."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from urllib.parse import urlsplit, urlunsplit

from celery_backfill.leases.script import Script

CHUNK = 65536


class Link:
    """One connection of a client, and the proxy's own to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def called(self, chunk: bytes) -> None:
        """The client has sent this; it is passed on next."""

    def replied(self, chunk: bytes) -> bool:
        """The server has sent this; whether to pass it on. If not, the connection is closed."""
        return True

    def ended(self) -> None:
        """Closed, by either side or by the proxy. May be called twice."""

    def close(self) -> None:
        """Close both connections."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ended()

    def pass_on(self) -> None:
        """Pass on both ways, in two threads, until either side closes."""
        Thread(target=self._pass_calls, daemon=True).start()
        Thread(target=self._pass_replies, daemon=True).start()

    def _pass_calls(self) -> None:
        with suppress(OSError):
            while chunk := self.client.recv(CHUNK):
                self.called(chunk)
                self.server.sendall(chunk)
        self.close()

    def _pass_replies(self) -> None:
        with suppress(OSError):
            while (chunk := self.server.recv(CHUNK)) and self.replied(chunk):
                self.client.sendall(chunk)
        self.close()


class TcpProxy:
    """Stands between workers and one server; ``url`` is its own."""

    def __init__(self, server_url: str, default_port: int) -> None:
        parts = urlsplit(server_url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or default_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        login = parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=f"{login}@{place}" if login else place))
        self._links: list[Link] = []
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Close every connection; how many there were. New ones are accepted."""
        links, self._links = self._links, []
        for link in links:
            link.close()
        return len(links)

    def close(self) -> None:
        """Close every connection, and accept none any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def link(self, client: socket.socket, server: socket.socket) -> Link:
        """What stands between the two."""
        return Link(client, server)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._connect(self._listener.accept()[0])

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server)
        except OSError:
            client.close()
            return
        link = self.link(client, server)
        self._links.append(link)
        link.pass_on()


class Proxy(TcpProxy):
    """A Redis that loses replies on command: the connection closes in the place of an answer."""

    def __init__(self, redis_url: str) -> None:
        self._lock = Lock()
        self._digests: tuple[bytes, ...] = ()
        self._left = 0
        self.lost = 0
        super().__init__(redis_url, 6379)

    def lose_replies(self, scripts: Sequence[Script], times: int) -> None:
        """The server runs the next so many calls of these scripts, and nobody hears of it."""
        with self._lock:
            self._digests = tuple(script.digest.encode() for script in scripts)
            self._left, self.lost = times, 0

    def link(self, client: socket.socket, server: socket.socket) -> Link:
        return _LossyLink(self, client, server)

    def is_to_lose(self, chunk: bytes) -> bool:
        """Whether the answer to this call is to be lost; counts it."""
        with self._lock:
            if self._left and any(digest in chunk for digest in self._digests):
                self._left -= 1
                return True
            return False


class _LossyLink(Link):
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        super().__init__(client, server)
        self._proxy = proxy
        self._doomed = False

    def called(self, chunk: bytes) -> None:
        self._doomed = self._doomed or self._proxy.is_to_lose(chunk)

    def replied(self, chunk: bytes) -> bool:
        if self._doomed:
            self._proxy.lost += 1
        return not self._doomed


@contextmanager
def proxy_to(redis_url: str) -> Iterator[Proxy]:
    """A proxy, closed at the end."""
    proxy = Proxy(redis_url)
    try:
        yield proxy
    finally:
        proxy.close()
