"""What a server's users have to know: its port and its password, in a file that only the owner can read."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from dataclasses import dataclass, replace
from pathlib import Path

# Below the range from which systems take ports for outgoing connections: nobody gets the port while the server
# is away, and a client that keeps trying cannot connect to itself.
PORTS = range(15_000, 32_000)
TRIES = 200


@dataclass(frozen=True, slots=True)
class State:
    port: int
    password: str

    @classmethod
    def read(cls, path: Path) -> State | None:
        try:
            given = json.loads(path.read_text())
            return cls(port=int(given["port"]), password=str(given["password"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """All or nothing, also when the power fails."""
        text = json.dumps({"port": self.port, "password": self.password})
        write_private(path, text)


def new_state() -> State:
    return State(port=free_port(), password=secrets.token_hex(16))


def with_new_port(state: State) -> State:
    return replace(state, port=free_port())


def write_private(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    part.replace(path)


def free_port() -> int:
    for port in random.sample(PORTS, TRIES):
        if port_is_free(port):
            return port
    raise OSError("no free port on 127.0.0.1")


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
