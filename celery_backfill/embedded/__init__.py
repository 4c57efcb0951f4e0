"""Local servers for development, demos and tests: Valkey and PostgreSQL from wheels, under one folder.

All processes that name the same folder share its servers. A server starts with its first user and ends with
its last one, however that one ended; its data stays in the folder. Not for production: nothing here is replicated,
backed up or upgraded.

``BACKFILL_REDIS_URL`` and ``BACKFILL_POSTGRES_URL`` win: where one is set, it is returned as it is and nothing starts.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .places import remove_data
from .postgres import Postgres
from .server import SharedServer
from .valkey import Valkey

__all__ = ["postgres_url", "redis_url", "remove", "stop"]

DEFAULT_FOLDER = ".backfill"


def redis_url(folder: str | os.PathLike[str] = DEFAULT_FOLDER) -> str:
    """The URL of the folder's Valkey, which runs as long as this process or another user of it lives.

    Starts it if nobody has yet, or if it has died. Joining a running one takes about a millisecond.
    Raises ``ConfigurationError`` if the wheel is missing, the folder cannot be used or the server does not start.
    """
    return os.environ.get("BACKFILL_REDIS_URL") or _valkey(folder).join()


def postgres_url(folder: str | os.PathLike[str] = DEFAULT_FOLDER) -> str:
    """The URL of the database ``backfill`` on the folder's PostgreSQL; otherwise like ``redis_url``."""
    return os.environ.get("BACKFILL_POSTGRES_URL") or _postgres(folder).join()


def stop(folder: str | os.PathLike[str] = DEFAULT_FOLDER) -> None:
    """Stop the folder's servers now, whoever uses them, and return when they are gone. The data stays."""
    for server in (_valkey(folder), _postgres(folder)):
        server.stop()


def remove(folder: str | os.PathLike[str] = DEFAULT_FOLDER) -> None:
    """Stop the folder's servers and delete the folder, with data that had to be kept elsewhere (see ``places``)."""
    stop(folder)
    remove_data(_postgres(folder).home)
    shutil.rmtree(folder, ignore_errors=True)


def _valkey(folder: str | os.PathLike[str]) -> SharedServer:
    return SharedServer(Path(folder), Valkey())


def _postgres(folder: str | os.PathLike[str]) -> SharedServer:
    return SharedServer(Path(folder), Postgres())
