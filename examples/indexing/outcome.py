"""What a finished run left behind, made into figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from celery_backfill.deadletters.letter import Letter

from .corpus import SourceFile
from .figures import Figures, LetterGroup
from .letters import DemoLetters
from .marks import Run
from .options import Options
from .source import Counts
from .verdict import Expected, over_limit, peaks, problems


@dataclass(frozen=True, slots=True)
class Outcome:
    """The marks and letters of a run. ``began`` is when the first task was sent, in the marks' nanoseconds.

    ``stalled`` says what was left when nothing moved any more; ``killed`` names workers that had to be.
    """

    files: Sequence[SourceFile]
    runs: Mapping[str, Sequence[Run]]
    letters: DemoLetters
    began: int
    publish_seconds: float
    stalled: str | None
    killed: Sequence[str]

    def figures(self, expected: Mapping[str, Expected], options: Options, *, check_seconds: float) -> Figures:
        """Compare with what was expected, and add up."""
        runs = [run for of_task in self.runs.values() for run in of_task]
        counts = {run.task_id: run.counts for run in runs if run.counts is not None}
        by_package = peaks(self.files, self.runs)
        letters = self._letters()
        seconds = (max((run.ended or run.started for run in runs), default=self.began) - self.began) / 1e9
        return Figures(
            files=len(self.files),
            done=len(counts),
            dead=len({letter.task_id for letter in letters}),
            running_max=max(by_package.values()),
            seconds=round(seconds, 3),
            tasks_per_second=round(len(self.files) / seconds, 1) if seconds else 0.0,
            limit=options.limit,
            workers=options.workers,
            concurrency=options.concurrency,
            packages=len(by_package),
            packages_at_limit=sum(most >= options.limit for most in by_package.values()),
            runs=len(runs),
            interrupted=sum(run.ended is None for run in runs),
            publish_seconds=round(self.publish_seconds, 3),
            check_seconds=round(check_seconds, 3),
            counted={
                field.name: sum(getattr(count, field.name) for count in counts.values()) for field in fields(Counts)
            },
            groups=[
                LetterGroup(group.exception_type, group.exception_message, group.count)
                for group in self.letters.groups()
            ],
            problems=self._problems(expected, by_package, letters, options),
        )

    def _problems(
        self,
        expected: Mapping[str, Expected],
        by_package: Mapping[str, int],
        letters: Sequence[Letter],
        options: Options,
    ) -> list[str]:
        return [
            *([self.stalled] if self.stalled else []),
            *(f"worker {name} did not stop by itself and was killed" for name in self.killed),
            *over_limit(by_package, options.limit),
            *problems(self.files, expected, self.runs, letters),
        ]

    def _letters(self) -> list[Letter]:
        ours = {file.task_id for file in self.files}
        return [letter for letter in self.letters.list() if letter.task_id in ours]
