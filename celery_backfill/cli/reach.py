"""What a command reaches: the app's settings, PostgreSQL, Redis; and its errors, each in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from ..deadletters.connections import OneConnection
    from ..leases.inspect import Inspector
    from ..settings import Settings


def app_of(ctx: click.Context) -> Any:
    """The Celery app that ``celery -A`` named."""
    return ctx.obj.app


def settings_of(ctx: click.Context) -> Settings:
    """The app's settings."""
    from ..settings import Settings

    return Settings.of(app_of(ctx))


@contextmanager
def postgres(ctx: click.Context) -> Iterator[OneConnection]:
    """The app's database. Every error of it ends the command with one line that says what to do."""
    from ..deadletters.connections import OneConnection, shown
    from ..errors import LettersUnavailableError
    from ..findings import said

    with plain_errors():
        settings = settings_of(ctx)
        connections = OneConnection(settings.postgres_url)
        try:
            yield connections
        except LettersUnavailableError as error:
            url = settings.postgres_url
            fail(f"PostgreSQL cannot be used at {shown(url)}: {said(error, url)}. Check backfill_postgres_url.")
        finally:
            connections.close()


@contextmanager
def redis_store(ctx: click.Context) -> Iterator[Inspector]:
    """Views of the app's lease store. Every error of it ends the command with one line that says what to do."""
    from ..errors import StoreUnavailableError
    from ..leases.doctor import shown
    from ..leases.inspect import inspecting

    with plain_errors():
        settings = settings_of(ctx)
        try:
            with inspecting(settings.redis_url, settings.namespace) as inspector:
                yield inspector
        except StoreUnavailableError as error:
            fail(f"Redis cannot be used at {shown(settings.redis_url)}: {error}. Check backfill_redis_url.")


@contextmanager
def plain_errors() -> Iterator[None]:
    """This library's errors as one line and exit code 1, without a traceback."""
    from ..errors import BackfillError

    try:
        yield
    except BackfillError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command with ``message`` on stderr and exit code 1."""
    raise click.ClickException(message)
