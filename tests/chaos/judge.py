"""What became of a world: every violation, with the fault that it is put down to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos import checker
from tests.chaos.checker import Ends
from tests.chaos.decisions import Decisions
from tests.chaos.deliveries import Deliveries
from tests.chaos.history import Event, History, Run
from tests.chaos.load import Sent, succeeds
from tests.chaos.world import World

NO_FAULT = "(no fault)"
SUICIDE = "(task kills its child)"

#: What may not be.
VIOLATIONS = ("overlap", "lost", "doubled", "wrong", "token", "permits", "left", "worker")
#: What is counted, and is no violation.
WITH_DATA, BY_KOMBU, LOOSE, LATE = "with the data", "by kombu", "loose", "late"


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault that was put in: its name, when it began and was healed, and whose runs it hit."""

    fault: str
    began: float
    ended: float
    hit: frozenset[str | int] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found in a world, and the fault that it is put down to."""

    what: str
    fault: str
    world: str
    text: str


@dataclass(slots=True)
class Outcome:
    """What became of one world. ``reclaims`` are seconds by fault."""

    world: str
    seed: int
    injected: Sequence[Injected]
    sent: int
    runs: int
    suicides: int = 0
    findings: list[Finding] = field(default_factory=list)
    reclaims: dict[str, list[float]] = field(default_factory=dict)

    @property
    def violations(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.what in VIOLATIONS]


def judge(world: World, seed: int, injected: Sequence[Injected], left: Sequence[str]) -> Outcome:
    """Judge a world that has been drained and closed."""
    history = world.history.read()
    outcome = Outcome(str(world.kind), seed, injected, len(world.load.sent), len(history.runs))
    _Judge(world, history, outcome).judge_all(left)
    return outcome


class _Judge:
    def __init__(self, world: World, history: History, outcome: Outcome) -> None:
        self._world, self._history, self._outcome = world, history, outcome
        self._decisions = Decisions.read(world.store.eras, world.namespace)
        eras = world.broker.server.eras if world.broker.server else ()
        self._deliveries = Deliveries.read(eras, world.broker.queue)
        self._runs_of: dict[str, list[Run]] = defaultdict(list)
        for run in history.runs:
            self._runs_of[run.task_id].append(run)

    def judge_all(self, left: Sequence[str]) -> None:
        self._overlaps()
        self._tokens()
        self._ends()
        self._reclaims()
        for name in left:
            self._find("left", self._world.history.runs[-1].last_seen if self._history.runs else 0.0, name)
        for text in self._world.complaints:
            self._find("worker", 0.0, text)

    def _find(self, what: str, at: float, text: str) -> None:
        fault = next((one.fault for one in reversed(self._outcome.injected) if one.began <= at), NO_FAULT)
        self._outcome.findings.append(Finding(what, fault, self._outcome.world, text))

    def _overlaps(self) -> None:
        for one in checker.overlaps(self._history.runs):
            text = f"{one.key}: {one.most} of {one.limit} for {one.until - one.at:.3f} s at {one.at:.3f}: " + ", ".join(
                f"{run.task_id} (token {run.token}, {run.worker}, pid {run.pid})" for run in one.runs
            )
            self._find("overlap" if all(run.strict for run in one.runs) else LOOSE, one.at, text)
        for run in self._history.runs:
            for _ in range(checker.late_marks([run])):
                self._find(LATE, run.last_seen, run.task_id)

    def _tokens(self) -> None:
        for back in checker.tokens_back(self._history.runs):
            if back.earlier.strict:
                text = f"{back.later.task_id} {back.later.token} after {back.earlier.task_id} {back.earlier.token}"
                self._find("token", back.later.started, text)
        for text in self._decisions.tokens_back:
            self._find("token", 0.0, f"granted {text}")
        for key, held in self._decisions.over_limit.items():
            self._find("permits", 0.0, f"{key}: {held} held")

    def _ends(self) -> None:
        sent = {one.task_id: one for one in self._world.load.sent}
        unsure = {one.task_id for one in sent.values() if not one.sure}
        expected = {task_id: succeeds(one) for task_id, one in sent.items()}
        for wrong in checker.wrong_ends(expected, self._all_ends(), unsure):
            of_task = self._runs_of[wrong.task_id]
            what, seen = wrong.what, max([sent[wrong.task_id].at, *(run.last_seen for run in of_task)])
            if what == "lost":
                what, seen = self._excuse(sent[wrong.task_id]) or (what, seen)
            elif what == "doubled" and (loss := self._decisions.forgotten(wrong.task_id)):
                what, seen = WITH_DATA, loss.at
            runs = "; ".join(f"token {run.token} {run.worker} {run.how} at {run.last_seen:.3f}" for run in of_task)
            self._find(what, seen, f"{wrong.task_id}: {wrong.detail} [{runs}]")

    def _all_ends(self) -> dict[str, Ends]:
        done: dict[str, set[int]] = defaultdict(set)
        dead: dict[str, set[int]] = defaultdict(set)
        for one in self._decisions.settled:
            (dead if one.dead else done)[one.task_id].add(one.token)
        letters = self._world.letters()
        return {
            task_id: Ends(len(done[task_id]), len(dead[task_id]), *letters.get(task_id, (0, ())))
            for task_id in {*done, *dead, *letters}
        }

    def _excuse(self, sent: Sent) -> tuple[str, float] | None:
        """Whether, and when, a lost task went with a server's data, or was lost by kombu before any worker saw it."""
        task_id = sent.task_id
        for loss in self._decisions.losses:
            token = loss.running.get(task_id)
            if task_id in loss.waiting or (token is not None and not self._had_live_owner(task_id, token, loss.at)):
                return WITH_DATA, loss.at
        if task_id not in self._decisions.admitted:
            if task_id in self._deliveries.lost_with_data:
                return WITH_DATA, self._deliveries.lost_with_data[task_id]
            if self._deliveries.never_delivered(task_id):
                return BY_KOMBU, sent.at
        return None

    def _had_live_owner(self, task_id: str, token: int, at: float) -> bool:
        """Whether a worker that was not killed knew that it had this lease: it has started the task under it."""
        gone = {worker.name: worker.gone_at for worker in self._world.workers}
        owner = next((run.worker for run in self._runs_of[task_id] if run.token == token), None)
        return owner is not None and (gone.get(owner) or at) >= at

    def _reclaims(self) -> None:
        """How long after a fault the runs that it hit were taken from their owner, or had started anew."""
        injected = self._outcome.injected
        ends = [*(one.began for one in injected[1:]), float("inf")]
        recovered = [event for event in self._history.events if _gives_back(event)]
        for one, until in zip(injected, ends, strict=False):
            for run in self._history.runs if one.hit else ():
                if run.was_on_at(one.began) and not one.hit.isdisjoint((run.worker, run.pid)):
                    cut_off = run.how is None and run.last_seen <= one.ended
                    self._reclaimed(one.fault, run, one.began, float("inf") if cut_off else until, recovered)
        for run in self._history.runs:
            died = self._world.folder / f"died-{run.task_id}"
            if "-die-" in run.task_id and died.exists() and died.read_text() == str(run.token):
                self._outcome.suicides += 1
                self._reclaimed(SUICIDE, run, run.last_seen, float("inf"), recovered)

    def _reclaimed(self, fault: str, run: Run, since: float, until: float, recovered: Iterable[Event]) -> None:
        events = [event.at for event in recovered if event.facts.get("attempt") == run.attempt]
        later = [other for other in self._runs_of[run.task_id] if other.token > run.token]
        starts = [other.started for other in later if other.retries == run.retries]
        found = [at for at in (*events, *starts) if since < at < until]
        if found:
            self._outcome.reclaims.setdefault(fault, []).append(min(found) - since)


def _gives_back(event: Event) -> bool:
    """Whether somebody took a lease away from a run that came to no end."""
    return event.action == "lease_recovered" or (event.action == "settle" and event.facts["outcome"] == "stalled")
