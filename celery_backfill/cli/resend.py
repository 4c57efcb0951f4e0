"""``backfill dlq requeue`` and ``backfill dlq discard``: acting on dead letters, one by one or many."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..deadletters.letter import Filter
from .filters import filters
from .output import as_json, print_json, record, safe
from .reach import app_of, postgres

if TYPE_CHECKING:
    from ..deadletters.requeue import Outcome, Requeue
    from ..deadletters.store import Letters

FEW = 5

ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")
limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
all_option = click.option("--all", "everything", is_flag=True, help="All that the filters match; without filters, all.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command(short_help="Send dead letters again.")
@ids_argument
@filters
@limit_option
@all_option
@yes_option
@click.option("--dry-run", is_flag=True, help="Only say which.")
@as_json
@click.pass_context
def requeue(
    ctx: click.Context,
    /,
    ids: Sequence[str],
    everything: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    limit: int | None,
    which: Filter,
) -> None:
    """Send dead letters again: by id or task id, or with --all those that the filters match.

    Each goes out as it was, to its own queue. Exit code 1 when any failed.

    \b
    Examples:
      celery -A proj backfill dlq requeue 42 43
      celery -A proj backfill dlq requeue --all --group 1f0c6a52b7d9e340 --dry-run
      celery -A proj backfill dlq requeue --all --task shop.charge --since 1d --yes
    """
    from ..deadletters.requeue import Requeue
    from ..deadletters.store import Letters
    from ..publisher import Publisher

    _demand_choice(ids, everything, which)
    with postgres(ctx) as connections, Publisher(app_of(ctx)) as publisher:
        sender = Requeue(connections=connections, publish=publisher)
        meant: Sequence[int | str] = ids or sender.candidates(which, limit)
        _confirm(meant, "requeue", ask=everything and not (yes or dry_run))
        letters = Letters(connections)
        if dry_run:
            outcomes = list(_would(letters, meant))
        else:
            with _progress(meant, hidden=as_json) as each:
                outcomes = list(_requeue_each(letters, sender, each))
    _report(outcomes, "requeued", as_json=as_json, dry_run=dry_run)


@click.command(short_help="Put dead letters aside.")
@ids_argument
@filters
@limit_option
@all_option
@yes_option
@as_json
@click.pass_context
def discard(
    ctx: click.Context,
    /,
    ids: Sequence[str],
    everything: bool,
    yes: bool,
    as_json: bool,
    limit: int | None,
    which: Filter,
) -> None:
    """Put dead letters aside, by id or task id, or with --all those that the filters match. Nothing is deleted.

    \b
    Example:
      celery -A proj backfill dlq discard --all --error SyntaxError --until 30d --yes
    """
    from ..deadletters.store import Letters

    _demand_choice(ids, everything, which)
    with postgres(ctx) as connections:
        letters = Letters(connections)
        meant: Sequence[int | str] = ids or letters.discardable(which, limit)
        _confirm(meant, "discard", ask=everything and not yes)
        with _progress(meant, hidden=as_json) as each:
            outcomes = list(_discard_each(letters, each))
    _report(outcomes, "discarded", as_json=as_json)


def _demand_choice(ids: Sequence[str], everything: bool, which: Filter) -> None:
    filtered = which != Filter()
    if not ids and not everything:
        raise click.UsageError("say which: ids, or --all with or without filters")
    if ids and (everything or filtered):
        raise click.UsageError("give either ids or --all with filters, not both")


def _confirm(meant: Sequence[object], verb: str, *, ask: bool) -> None:
    if ask and meant:
        click.confirm(f"{verb} {len(meant)} dead letters?", abort=True, err=True)


@contextmanager
def _progress(meant: Sequence[int | str], *, hidden: bool) -> Iterator[Iterable[int | str]]:
    """The ids, with a bar on stderr when they are many and somebody watches."""
    if hidden or len(meant) <= FEW or not sys.stderr.isatty():
        yield meant
        return
    with click.progressbar(meant, show_pos=True, file=sys.stderr) as bar:
        yield bar


def _requeue_each(letters: Letters, sender: Requeue, ids: Iterable[int | str]) -> Iterator[Outcome]:
    """One outcome an id. When PostgreSQL goes away what is left is not tried; an error only when nothing was done."""
    from ..deadletters.requeue import FAILED, SKIPPED, Outcome
    from ..errors import LettersUnavailableError

    away = False
    for place, given in enumerate(ids):
        if away:
            yield Outcome(_number(given), None, SKIPPED, "not tried: PostgreSQL went away")
            continue
        try:
            number = _resolved(letters, given)
            yield _missing(given) if number is None else sender.requeue(number)
        except LettersUnavailableError as error:
            if place == 0:
                raise
            away = True
            yield Outcome(_number(given), None, FAILED, f"PostgreSQL went away: {error}")


def _discard_each(letters: Letters, ids: Iterable[int | str]) -> Iterator[Outcome]:
    from ..deadletters.requeue import SKIPPED, Outcome

    for given in ids:
        letter = letters.get(given)
        if letter is None:
            yield _missing(given)
        elif letters.discard(letter.id):
            yield Outcome(letter.id, letter.task_id, "discarded")
        else:
            yield Outcome(letter.id, letter.task_id, SKIPPED, f"it is {letter.state}, not dead")


def _would(letters: Letters, ids: Iterable[int | str]) -> Iterator[Outcome]:
    from ..deadletters.requeue import SKIPPED, Outcome

    for given in ids:
        letter = letters.get(given)
        yield _missing(given) if letter is None else Outcome(letter.id, letter.task_id, SKIPPED, "dry run")


def _resolved(letters: Letters, given: int | str) -> int | None:
    """The letter's id: numbers from a filter are ids already; what was typed may be a task id."""
    if isinstance(given, int):
        return given
    letter = letters.get(given)
    return letter.id if letter else None


def _missing(given: int | str) -> Outcome:
    from ..deadletters.requeue import FAILED, Outcome

    return Outcome(_number(given), str(given), FAILED, "there is no such letter")


def _number(given: int | str) -> int | None:
    return given if isinstance(given, int) else None


def _report(outcomes: Sequence[Outcome], done: str, *, as_json: bool, dry_run: bool = False) -> None:
    counts = {word: sum(outcome.outcome == word for outcome in outcomes) for word in (done, "skipped", "failed")}
    if as_json:
        extra = {"dry_run": True} if dry_run else {}
        print_json({**counts, **extra, "results": [record(outcome) for outcome in outcomes]})
    else:
        _print_outcomes(outcomes, counts)
    if counts["failed"]:
        raise SystemExit(1)


def _print_outcomes(outcomes: Sequence[Outcome], counts: dict[str, int]) -> None:
    for outcome in outcomes:
        if outcome.reason or len(outcomes) <= FEW:
            reason = f" ({outcome.reason})" if outcome.reason else ""
            click.echo(safe(f"{outcome.id or '-'} {outcome.task_id or ''}: {outcome.outcome}{reason}"))
    click.echo(", ".join(f"{count} {word}" for word, count in counts.items()))
