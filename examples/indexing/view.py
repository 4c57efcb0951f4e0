"""What the demo shows while it works: a live view on a terminal, plain lines elsewhere, nothing with ``--json``."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from .progress import BusyKey, Progress

PLAIN_SECONDS = 2.0
FRAMES_A_SECOND = 8
BUSIEST = 8
BAR_WIDTH = 30
NAME_WIDTH = 24
MOST_DOTS = 8


class View(Protocol):
    """Shows the phases of the demo one after the other; a phase ends when the next begins."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def phase(self, text: str) -> None:
        """A step of unknown length begins."""

    def running(self, progress: Progress) -> None:
        """The workers are at it."""

    def checking(self, checked: int, files: int) -> None:
        """The check is at it."""

    def broken_off(self, text: str) -> None:
        """The phase will not be finished; what is done instead."""


def view_for(console: Console, *, limit: int, quiet: bool) -> View:
    """The view that suits where ``console`` writes to."""
    if quiet:
        return SilentView()
    return LiveView(console, limit) if console.is_terminal else PlainView(console)


class SilentView:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def phase(self, text: str) -> None:
        pass

    def running(self, progress: Progress) -> None:
        pass

    def checking(self, checked: int, files: int) -> None:
        pass

    def broken_off(self, text: str) -> None:
        pass


class PlainView(SilentView):
    """A line for each phase, and every other second one that says how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def phase(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def running(self, progress: Progress) -> None:
        if self._due():
            self.phase(
                f"{progress.finished}/{progress.files} files: {progress.done} done, {progress.running} running, "
                f"{progress.blocked} blocked, {progress.dead} dead; "
                f"{progress.rate:.0f} a second, {_eta(progress)} to go"
            )

    def checking(self, checked: int, files: int) -> None:
        if self._due():
            self.phase(f"{checked}/{files} files checked")

    def broken_off(self, text: str) -> None:
        self.phase(text)

    def _due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + PLAIN_SECONDS
        return True


class LiveView:
    """The finished phases with the time they took, and below them the current one, redrawn in place."""

    def __init__(self, console: Console, limit: int) -> None:
        self._limit = limit
        self._console = console
        self._live = Live(console=console, refresh_per_second=FRAMES_A_SECOND, transient=True)
        self._text = ""
        self._title = Spinner("dots")
        self._began = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close_phase()
        self._live.stop()

    def phase(self, text: str) -> None:
        self._close_phase()
        self._text, self._began = text, time.monotonic()
        self._title = Spinner("dots", text=Text(text), style="cyan")
        self._live.update(self._title)

    def running(self, progress: Progress) -> None:
        self._live.update(Group(self._title, _running(progress, self._limit, self._console.width)))

    def checking(self, checked: int, files: int) -> None:
        line = Table.grid(padding=(0, 1))
        line.add_row(_bar(checked, files), f"{checked:,}/{files:,} files")
        self._live.update(Group(self._title, line))

    def broken_off(self, text: str) -> None:
        self._text = ""
        self._live.update(Spinner("dots", text=Text(text), style="yellow"))

    def _close_phase(self) -> None:
        if self._text:
            took = time.monotonic() - self._began
            self._console.print(
                Text.assemble(("✓ ", "green"), self._text, (f"  {took:.1f} s", "dim")),
            )
            self._text = ""


def _running(progress: Progress, limit: int, width: int) -> RenderableType:
    head = Table.grid(padding=(0, 1))
    head.add_row(
        _bar(progress.finished, progress.files),
        f"{progress.finished:,}/{progress.files:,} files",
        Text(f"{progress.finished / max(progress.files, 1):.0%}", style="bold"),
        Text(f"{progress.rate:,.0f}/s", style="cyan"),
        Text(f"{_clock(progress.seconds)} elapsed, {_eta(progress)} to go", style="dim"),
    )
    return Group(head, _counts(progress), Text(), _busiest(progress.busiest, limit, width))


def _counts(progress: Progress) -> RenderableType:
    parts = [
        ("done", progress.done, "green"),
        ("running", progress.running, "cyan"),
        ("blocked", progress.blocked, "yellow"),
        ("dead", progress.dead, "red"),
    ]
    if progress.scheduled:
        parts.append(("waiting for a retry", progress.scheduled, "magenta"))
    if progress.published < progress.files:
        parts.append(("still to send", progress.files - progress.published, "dim"))
    return Text("   ").join(
        Text.assemble((f"{number:,}", f"bold {style}"), f" {name}") for name, number, style in parts
    )


def _busiest(keys: tuple[BusyKey, ...], limit: int, width: int) -> RenderableType:
    table = Table.grid(Column(min_width=NAME_WIDTH), Column(), Column(justify="right"), Column(), padding=(0, 2))
    most = max((key.blocked for key in keys), default=0) or 1
    room = max(min(BAR_WIDTH, width - 50), 5)
    for key in keys[:BUSIEST]:
        waiting = Text("▪" * -(-key.blocked * room // most), style="yellow")
        table.add_row(
            Text(key.package[:NAME_WIDTH]),
            _permits(key.held, limit),
            Text(f"{key.blocked:,} blocked", style="yellow"),
            waiting,
        )
    for _ in range(BUSIEST - len(keys)):
        table.add_row("")
    return table


def _permits(held: int, limit: int) -> Text:
    if limit > MOST_DOTS:
        return Text(f"{held} of {limit}", style="cyan")
    return Text.assemble(("●" * held, "cyan"), ("○" * (limit - held), "dim"))


def _bar(now: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=now, width=BAR_WIDTH)


def _eta(progress: Progress) -> str:
    return "?" if progress.eta is None else _clock(progress.eta)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
