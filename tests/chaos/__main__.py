"""``python -m tests.chaos``: the long run. Ends with 1 when anything was violated; then its folder is kept."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status

from celery_backfill import embedded
from tests.chaos.broker import amqp_url, rabbitmq_is_there
from tests.chaos.campaign import run_world
from tests.chaos.faults import FAULTS
from tests.chaos.judge import Finding, Outcome
from tests.chaos.proxy import Network
from tests.chaos.reclaim import CASES, Reclaims, measure
from tests.chaos.report import Report, markdown, tables
from tests.chaos.world import KINDS, Kind, World

SHOWN = 20


def main() -> int:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="celery_backfill-chaos-"))
    # PostgreSQL runs as another user where root starts it, who has to pass through.
    folder.chmod(0o711)
    screen = Console(stderr=options.json or options.markdown)
    kinds, skipped = _possible([kind for kind in KINDS if not options.world or str(kind) in options.world])
    for reason in skipped:
        screen.print(f"skipped: {reason}", style="yellow")
    with _servers(folder) as (network, postgres_url):
        run = _Run(options, folder, network, postgres_url, screen)
        outcomes = run.worlds(kinds)
        reclaims = run.reclaims(kinds) if options.reclaim else []
    report = Report(options.seed, options.minutes, outcomes, reclaims, skipped)
    _show(report, options, screen)
    fails = not report.held or (bool(skipped) and os.environ.get("CI") == "true")
    if fails or options.keep:
        screen.print(f"marks and logs are in {folder}; the seed was {options.seed}", style="bold")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return int(fails)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults on real workers and servers.")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long faults are put in, in all worlds together"
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="order, victims and lengths of faults"
    )
    parser.add_argument("--world", action="append", choices=[str(kind) for kind in KINDS], help="only this one; repeat")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one; repeat")
    parser.add_argument(
        "--no-reclaim", dest="reclaim", action="store_false", help="leave out reclaims at default settings"
    )
    parser.add_argument("--json", action="store_true", help="figures only, as one JSON object")
    parser.add_argument("--markdown", action="store_true", help="tables for the documentation")
    parser.add_argument("--keep", action="store_true", help="keep marks and logs in any case")
    return parser.parse_args()


def _possible(kinds: Sequence[Kind]) -> tuple[list[Kind], list[str]]:
    needed = [kind for kind in kinds if kind.broker == "rabbitmq"]
    if not needed or rabbitmq_is_there():
        return list(kinds), []
    reasons = [f"{kind}: no RabbitMQ at {amqp_url().rpartition('@')[2]}" for kind in needed]
    return [kind for kind in kinds if kind not in needed], reasons


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[Network, str]]:
    network = Network()
    try:
        yield network, embedded.postgres_url(folder / "servers")
    finally:
        network.close()
        embedded.remove(folder / "servers")


class _Run:
    def __init__(
        self, options: argparse.Namespace, folder: Path, network: Network, postgres_url: str, screen: Console
    ) -> None:
        self._options, self._folder, self._screen = options, folder, screen
        self._network, self._postgres_url = network, postgres_url
        self._began = time.monotonic()

    def worlds(self, kinds: Sequence[Kind]) -> list[Outcome]:
        faults = [FAULTS[name] for name in self._options.fault or FAULTS]
        outcomes = []
        with self._screen.status("start") as status:
            for number, kind in enumerate(kinds, start=1):
                show = partial(self._progress, status, f"{number}/{len(kinds)}")
                outcome = run_world(
                    kind,
                    seed=self._options.seed,
                    seconds=self._options.minutes * 60 / len(kinds),
                    faults=faults,
                    folder=self._folder / str(kind).replace("/", "-"),
                    network=self._network,
                    postgres_url=self._postgres_url,
                    show=show,
                )
                outcomes.append(outcome)
                self._screen.print(
                    f"{kind}: {len(outcome.injected)} faults, {outcome.sent} tasks, "
                    f"{len(outcome.violations)} violations, {self._elapsed()}"
                )
                _tell(self._screen, outcome.violations)
        return outcomes

    def reclaims(self, kinds: Sequence[Kind]) -> list[Reclaims]:
        """At default settings, on each pool; the broker has no part in it."""
        found: list[Reclaims] = []
        by_pool = {kind.pool: kind for kind in reversed(kinds)}
        wanted = [(case, by_pool[pool]) for case in CASES for pool in case.pools if pool in by_pool]
        with self._screen.status("start") as status:
            for case, kind in wanted:
                status.update(f"{self._elapsed()}  reclaim at default settings  {kind}  {case.name}")
                folder = self._folder / f"reclaim{len(found) + 1}"
                found.append(
                    measure(
                        case,
                        kind,
                        seed=self._options.seed,
                        folder=folder,
                        network=self._network,
                        postgres_url=self._postgres_url,
                    )
                )
        return found

    def _progress(self, status: Status, at: str, world: World, doing: str) -> None:
        tasks = f"{len(world.load.sent)} tasks, {len(world.history.ended)} came to an end"
        status.update(f"{self._elapsed()}  {at} {world.kind}  [bold]{doing}[/bold]  {tasks}")

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"


def _show(report: Report, options: argparse.Namespace, screen: Console) -> None:
    if options.json:
        print(json.dumps(report.to_json(), indent=1))
    elif options.markdown:
        print(markdown(report))
    else:
        for table in tables(report):
            screen.print(table)
        screen.print(report.summary())
    _tell(screen, [one for reclaims in report.reclaims for one in reclaims.findings])


def _tell(screen: Console, findings: Sequence[Finding]) -> None:
    for one in findings[:SHOWN]:
        text = f"{one.what} ({one.fault}, {one.world}): {one.text}"
        screen.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if len(findings) > SHOWN:
        screen.print(f"... and {len(findings) - SHOWN} more", style="red")


if __name__ == "__main__":
    sys.exit(main())
