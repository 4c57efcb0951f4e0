"""Tells that a worker of this machine is gone for good, so that its leases need not run out first (F25).

A closed connection proves nothing. What does: the worker's process is gone from this very host, boot and pid namespace,
told from a later one of the same pid by its start time, and so is every child that it forked, since such a child may
still run a task. For the children there is the presence: a socket with a name in Linux's abstract namespace, opened
before the pool forks. Every fork inherits it, and the kernel frees the name when the last of them has ended, however
it ended. A stopped process holds it too. Programs that a task starts do not, since it is closed on exec.

Machines resumed from one snapshot share a boot id. Give them different host names if they share a Redis.

Elsewhere than on Linux a worker has no identity, and nothing is witnessed: leases run out there.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from pathlib import Path
from uuid import uuid4

#: Where a worker lives, its pid, the start time of that process in clock ticks since boot, and its presence.
IDENTITY = re.compile(r"(?P<place>.+)/(?P<pid>[1-9][0-9]{0,8})/(?P<start>[0-9]+)/(?P<presence>[0-9a-f]{32})", re.DOTALL)
DEAD_STATES = frozenset("ZX")


class Presence:
    """A worker's identity, and the name that it and its forks hold. Open it in the main process before the pool forks.

    ``identity`` is what a ``Witness`` on the same machine can judge; empty where there can be none.
    """

    def __init__(self, identity: str = "", holder: socket.socket | None = None) -> None:
        self.identity = identity
        self._holder = holder

    @classmethod
    def open(cls) -> Presence:
        """Make a presence for this process; one without identity where that cannot be done."""
        if sys.platform != "linux":
            return cls()
        presence = uuid4().hex
        try:
            identity = f"{_place()}/{os.getpid()}/{_life(os.getpid())[1]}/{presence}"
            return cls(identity, _hold(presence))
        except OSError:
            return cls()

    def close(self) -> None:
        """Hold the name no longer in this process; forks that still live do."""
        if self._holder is not None:
            self._holder.close()


class Witness:
    """Judges identities published by workers, wherever they are."""

    def is_gone(self, identity: str) -> bool:
        """Whether that worker and all its forks are gone. False for whatever cannot be known here, and for nonsense."""
        found = IDENTITY.fullmatch(identity)
        if found is None or sys.platform != "linux":
            return False
        try:
            return (
                found["place"] == _place()
                and _has_ended(int(found["pid"]), found["start"])
                and _is_free(found["presence"])
            )
        except OSError:
            return False


def _place() -> str:
    """The host, boot, pid namespace and network namespace that this thread is in. Raises ``OSError`` if unreadable."""
    if str(Path("/proc/self").readlink()) != str(os.getpid()):
        raise OSError("/proc shows the processes of another pid namespace")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespaces = [str(Path(f"/proc/thread-self/ns/{kind}").readlink()) for kind in ("pid", "net")]
    return "/".join([os.uname().nodename, boot, *namespaces])


def _has_ended(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # It lives, as another user's.
    # A /proc that hides other users' processes raises here, as does one that has ended just now: ask again later.
    state, started = _life(pid)
    return started != start or state in DEAD_STATES


def _life(pid: int) -> tuple[str, str]:
    """State and start time of a process. Raises ``OSError`` when there is no such line."""
    # The second field is the program's name in parentheses, which may itself hold parentheses, spaces and newlines.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if len(fields) < 20:
        raise OSError(f"/proc/{pid}/stat cannot be read")
    return fields[0].decode(), fields[19].decode()


def _hold(presence: str) -> socket.socket:
    # A datagram socket: it has no backlog that those who ask could fill, and what it holds nobody needs to accept.
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(_name(presence))
    except OSError:
        holder.close()
        raise
    return holder


def _is_free(presence: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        return asker.connect_ex(_name(presence)) == errno.ECONNREFUSED


def _name(presence: str) -> str:
    return f"\0celery_backfill/{presence}"
