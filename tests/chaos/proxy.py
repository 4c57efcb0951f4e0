"""A small TCP proxy that stands for the network: it can be cut, silenced, and made to lose replies.

All proxies of a run live on one event loop in one thread; their methods may be called from any other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

CHUNK = 65536
#: What tells a connection for scripts from others.
SCRIPT_CALL = b"EVALSHA"


class Network:
    """The event loop of all proxies."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="chaos-network", daemon=True)
        self._thread.start()

    def proxy_to(self, address: tuple[str, int]) -> Proxy:
        """A proxy on a port of its own."""
        proxy = Proxy(self, address)
        self.run(proxy.open())
        return proxy

    def run(self, coroutine: Any) -> Any:
        """Run it on the loop; its answer."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def call(self, function: Callable[[], None]) -> None:
        """Call it on the loop, and wait for it."""

        async def called() -> None:
            function()

        self.run(called())

    def close(self) -> None:
        """Cut everything, for good."""

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Proxy:
    """The way from one client to one server."""

    def __init__(self, network: Network, address: tuple[str, int]) -> None:
        self._network, self._address = network, address
        self._lines: set[_Line] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._loses = 0.0
        self._dice = random.Random()
        self.lost = 0
        self.port = 0

    async def open(self) -> None:
        """Listen."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    # Faults.

    def cut(self) -> None:
        """Reset every connection, and each new one."""

        def now() -> None:
            self._refuses = True
            self._reset_all()

        self._network.call(now)

    def silence(self) -> None:
        """Pass nothing on, and close nothing. What is sent meanwhile arrives late, when the way is free again."""
        self._network.call(self._flows.clear)

    def reset(self) -> None:
        """Reset every connection, once."""
        self._network.call(self._reset_all)

    def lose_replies(self, share: float, dice: random.Random) -> None:
        """Of the connections that scripts are called on: reset so many of them instead of passing on a reply."""

        def now() -> None:
            self._loses, self._dice = share, dice

        self._network.call(now)

    def heal(self) -> None:
        """All is well again."""

        def now() -> None:
            self._refuses, self._loses = False, 0.0
            self._flows.set()

        self._network.call(now)

    # Behind them.

    def _reset_all(self) -> None:
        for line in tuple(self._lines):
            line.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer)
        self._lines.add(line)
        try:
            with suppress(OSError, asyncio.CancelledError):
                await self._flows.wait()
                if not self._refuses:
                    await self._pass(line, reader, writer)
        finally:
            self._lines.discard(line)
            line.reset()

    async def _pass(self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._address)
        line.writers.append(server_writer)
        calls = self._pump(line, reader, server_writer, replies=False)
        replies = self._pump(line, server_reader, writer, replies=True)
        await asyncio.gather(calls, replies)

    async def _pump(
        self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._flows.wait()
                if not replies and SCRIPT_CALL in chunk:
                    line.for_scripts = True
                if replies and line.for_scripts and self._dice.random() < self._loses:
                    self.lost += 1
                    line.reset()
                    return
                writer.write(chunk)
                await writer.drain()
            await self._flows.wait()
        with suppress(OSError):
            writer.close()


class _Line:
    """One connection through a proxy: both of its ends."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.for_scripts = False

    def reset(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
