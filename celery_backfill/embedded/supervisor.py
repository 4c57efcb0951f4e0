"""Runs one server for as long as somebody uses it.

A program of its own, started as ``python -I -S supervisor.py SPEC``: standard library only, nothing of the package.
SPEC is JSON: ``command`` (list), ``cwd``, ``uid`` and ``gid`` (null: as this process), ``users`` (path of the lock
file that every user holds shared), ``alive`` (number of the inherited, exclusively locked file descriptor).

The server inherits ``alive``, so that lock is free exactly when supervisor and server are both gone. The file holds
both process ids, the supervisor's first.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

LOOK_SECONDS = 0.1
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1

asked_to_stop = False


def main() -> None:
    if os.fork():  # the starter must not have to reap us, and nobody shall find us among its children
        os._exit(0)
    spec = json.loads(sys.argv[1])
    listen_for_signals()
    record(spec["alive"], os.getpid())
    users = os.open(spec["users"], os.O_RDWR)
    server = start(spec)
    record(spec["alive"], os.getpid(), server.pid)
    while server.poll() is None and not asked_to_stop and not unused(users):
        time.sleep(LOOK_SECONDS)
    stop(server)


def listen_for_signals() -> None:
    def ask(_signal: int, _frame: Any) -> None:
        global asked_to_stop
        asked_to_stop = True

    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)


def record(fd: int, *pids: int) -> None:
    os.pwrite(fd, " ".join(map(str, pids)).encode() + b"\n", 0)


def start(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def end_with_supervisor() -> None:
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)

    return subprocess.Popen(
        spec["command"],
        cwd=spec["cwd"],
        user=spec["uid"],
        group=spec["gid"],
        extra_groups=None if spec["uid"] is None else [],
        pass_fds=[spec["alive"]],
        preexec_fn=end_with_supervisor,
    )


def unused(users: int) -> bool:
    """Whether the last user is gone. Once true, new users wait until this process has ended."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stop(server: subprocess.Popen[bytes]) -> None:
    """Both servers take SIGINT for an orderly end that waits for no client."""
    server.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(STOP_SECONDS)
    server.kill()
    server.wait()


if __name__ == "__main__":
    main()
