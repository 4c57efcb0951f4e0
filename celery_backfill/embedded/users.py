"""Which servers this process uses. Each use is a shared lock on the server's ``users.lock``, held until it ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .locks import EXCLUSIVE, SHARED, open_lock, try_lock, wait_lock

guard = threading.RLock()
_locks: dict[Path, int] = {}


def enter(home: Path, deadline: float) -> None:
    """Become a user. Waits while the server of the users before is still stopping."""
    if home in _locks and _is_current(home):
        return
    forget(home)
    path = home / "users.lock"
    fd = open_lock(path)
    try:
        wait_lock(fd, SHARED, deadline, path)
    except BaseException:
        os.close(fd)
        raise
    _locks[home] = fd


def homes() -> list[Path]:
    return list(_locks)


def is_last(home: Path) -> bool:
    """Whether nobody else uses it. If so, newcomers wait until this process forgets it. Call it only when leaving."""
    return _is_current(home) and try_lock(_locks[home], EXCLUSIVE)


def is_stopping(home: Path) -> bool:
    """Whether a supervisor that saw no user is stopping it. Call it only when leaving."""
    return _is_current(home) and not try_lock(_locks[home], SHARED)


def forget(home: Path) -> None:
    if home in _locks:
        os.close(_locks.pop(home))


def _is_current(home: Path) -> bool:
    """False after somebody deleted the folder under us: what is there now is not the server that we use."""
    try:
        return os.path.samestat(os.fstat(_locks[home]), (home / "users.lock").stat())
    except OSError:
        return False


def _become_own_user() -> None:
    """In a forked child: its lock must not be its parent's, or the parent could take it for its own alone."""
    global guard
    guard = threading.RLock()
    for home, inherited in list(_locks.items()):
        try:
            own = open_lock(home / "users.lock")
        except OSError:
            continue
        if try_lock(own, SHARED):
            _locks[home] = own
            os.close(inherited)
        else:
            os.close(own)


# No fork while a server starts: the child would inherit, and keep, the locks of the start.
os.register_at_fork(
    before=lambda: guard.acquire(), after_in_parent=lambda: guard.release(), after_in_child=_become_own_user
)
