"""The demo: a small run of it through a real worker, and that its check sees what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_backfill.deadletters.letter import Letter
from examples.indexing.corpus import SourceFile, collect
from examples.indexing.marks import MarksFile, MarksReader, Run, most_at_once
from examples.indexing.source import Counts, count
from examples.indexing.verdict import Expected, expectations, over_limit, peaks, problems
from tests.conftest import delete_keys
from tests.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[2]
TIMEOUT = 90
GOOD = b"class A:\n    def one(self): ...\n\n    async def two(self): ...\n"
COUNTED = Counts(lines=4, nodes=12, functions=2, classes=1)
UNPARSABLE = {
    "syntax.py": b"print 'the old way'\n",
    "coding.py": b"# coding: no-such-coding\n",
    "null.py": b"x = 1\0\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages: twenty files that parse, three that do not, and one that cannot be read, not even by root."""
    for package in ("good", "mixed"):
        (tmp_path / "tree" / package).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "tree" / package / f"module{number}.py").write_bytes(GOOD)
    for name, source in UNPARSABLE.items():
        (tmp_path / "tree" / "mixed" / name).write_bytes(source)
    (tmp_path / "tree" / "mixed" / "unreadable.py").symlink_to(tmp_path / "nowhere.py")
    return tmp_path / "tree"


class Demo:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(PROJECT)}

    def start(self, *arguments: str | Path, module: str = "examples.indexing") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path) -> dict[str, Any]:
        """The figures of a run that went well."""
        process = self.start("--json", *arguments)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, stderr) == (0, "")
        figures: dict[str, Any] = json.loads(stdout)
        return figures

    def letters(self) -> list[dict[str, Any]]:
        """What the command that the demo names shows."""
        command = ("-A", "examples.indexing.app", "backfill", "dlq", "list", "--state", "dead", "--json")
        stdout, _ = self.start(*command, module="celery").communicate(timeout=TIMEOUT)
        letters: list[dict[str, Any]] = json.loads(stdout)
        return letters

    def worker(self) -> int:
        """The process id of the running demo's worker, once it has begun a task."""
        marks = self._folder / ".backfill" / "indexing" / "marks.jsonl"
        begun = wait_until(lambda: marks.exists() and '"start"' in marks.read_text(), "a task has begun", TIMEOUT)
        assert begun
        pool = next(mark["pid"] for mark in map(json.loads, marks.read_text().splitlines()) if "pid" in mark)
        return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pool)]))


@pytest.fixture
def demo(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[Demo]:
    """Runs the demo on the tests' servers, in a folder of its own."""
    yield Demo(tmp_path, {"BACKFILL_REDIS_URL": redis_url, "BACKFILL_POSTGRES_URL": postgres_url})
    with redis.Redis.from_url(redis_url) as client:
        delete_keys(client, "*indexing-demo*")
        delete_keys(client, "*indexing1@*")


def ended(group: int) -> bool:
    """Whether no process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_demo_counts_each_file_once_and_has_one_letter_for_each_that_fails(demo: Demo, tree: Path) -> None:
    figures = demo.run("--limit", "1", "--path", tree)
    assert (figures["files"], figures["done"], figures["dead"]) == (24, 20, 4)
    assert figures["running_max"] == 1
    assert figures["tasks_per_second"] == pytest.approx(24 / figures["seconds"], rel=0.1)
    assert figures["runs"] == 20 + 3 + (1 + 3)  # a file that cannot be read is tried three times more
    assert figures["counted"] == {"lines": 80, "nodes": 240, "functions": 40, "classes": 20}
    reasons = sorted((letter["reason"], letter["retries"]) for letter in demo.letters())
    assert reasons == [("exhausted", 3), *[("non_retryable", 0)] * 3]


@pytest.mark.slow
def test_demo_run_again_shows_its_own_letters_only(demo: Demo, tree: Path) -> None:
    (tree / "mixed" / "unreadable.py").unlink()
    first, second = demo.run("--path", tree), demo.run("--path", tree)
    assert first["dead"] == second["dead"] == len(demo.letters()) == 3


@pytest.mark.slow
def test_demo_tells_of_a_worker_that_died_instead_of_waiting(demo: Demo, tree: Path) -> None:
    process = demo.start("--json", "--path", tree)
    os.kill(demo.worker(), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, stdout) == (1, "")
    assert "ended early with exit code -9" in stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_demo_leaves_no_worker_behind_when_it_is_stopped(demo: Demo, tree: Path, number: int, code: int) -> None:
    process = demo.start("--json", "--path", tree)
    worker = demo.worker()
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == code
    wait_until(lambda: ended(worker), "the worker and its pool have ended", TIMEOUT)


def test_files_are_collected_with_their_package_and_new_task_ids_each_run(tree: Path) -> None:
    (tree / "single.py").write_bytes(GOOD)
    (tree / "good" / "__pycache__").mkdir()
    (tree / "good" / "__pycache__" / "left.py").write_bytes(GOOD)
    files = collect([tree, tree], run=uuid.uuid4())
    assert Counter(file.package for file in files) == {"good": 10, "mixed": 14, "single": 1}
    assert len({file.task_id for file in [*files, *collect([tree], run=uuid.uuid4())]}) == 50
    sample = collect([tree], run=uuid.uuid4(), at_most=5)
    assert Counter(file.package for file in sample) == {"good": 2, "mixed": 2, "single": 1}


def test_a_source_is_counted_or_refused_with_what_the_task_declares() -> None:
    assert count(GOOD) == COUNTED
    for source in (*UNPARSABLE.values(), b"\xff", b"-" * 100_000 + b"1"):
        with pytest.raises((SyntaxError, ValueError)):
            count(source)


def test_what_must_become_of_a_file_is_found_by_parsing_it(tree: Path) -> None:
    files = collect([tree], run=uuid.uuid4())
    checked: list[int] = []
    expected = expectations(files, max_retries=3, processes=1, checked=checked.append)
    assert checked == list(range(1, len(files) + 1))
    by_name = {Path(file.path).name: expected[file.task_id] for file in files}
    assert by_name["module0.py"] == Expected(COUNTED, None, runs=1)
    assert by_name["syntax.py"] == Expected(None, "SyntaxError", runs=1)
    assert by_name["unreadable.py"] == Expected(None, "FileNotFoundError", runs=4)


def ran(task_id: str, started: int, ended: int | None, **fields: Any) -> Run:
    return Run(task_id, pid=1, started=started, ended=ended, **fields)


@pytest.mark.parametrize(
    ("runs", "most"),
    [
        ([], 0),
        ([ran("a", 0, 10), ran("b", 10, 20)], 1),
        ([ran("a", 0, 11), ran("b", 10, 20)], 2),
        ([ran("a", 0, 100), ran("b", 10, 20), ran("c", 30, 40)], 2),
        ([ran("a", 0, None), ran("b", 50, 60)], 2),
        ([ran("a", 0, None), ran("a", 40, 45), ran("b", 50, 60)], 1),
    ],
)
def test_the_sweep_finds_the_most_that_ran_at_once(runs: list[Run], most: int) -> None:
    assert most_at_once(runs) == most


def test_marks_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    path.write_text("what an earlier run left\n")
    reader = MarksReader(path, ["a", "b"])
    writer = MarksFile(path)
    writer.ready("worker@here")
    with writer.run("a") as outcome, writer.run("stranger"):
        reader.read()
        assert [(run.ended, run.counts) for run in reader.runs()["a"]] == [(None, None)]
        outcome.counted(COUNTED)
    with pytest.raises(SyntaxError), writer.run("b"):
        raise SyntaxError
    reader.read()
    assert reader.ready == {"worker@here"}
    assert reader.done == {"a"}
    assert {task_id: [(run.counts, run.error) for run in runs] for task_id, runs in reader.runs().items()} == {
        "a": [(COUNTED, None)],
        "b": [(None, "SyntaxError")],
    }


FILE = SourceFile("a", "package", "/package/file.py")
DONE = ran("a", 0, 1, counts=COUNTED)
FAILED = ran("a", 0, 1, error="SyntaxError")
GOES_WELL = Expected(COUNTED, None, runs=1)
FAILS = Expected(None, "SyntaxError", runs=1)


def letter(exception_type: str = "SyntaxError", failure_count: int = 1) -> Letter:
    fields: dict[str, Any] = dict.fromkeys(Letter.__dataclass_fields__)
    return Letter(**{**fields, "task_id": "a", "exception_type": exception_type, "failure_count": failure_count})


@pytest.mark.parametrize(
    ("expected", "runs", "letters", "wrong"),
    [
        (GOES_WELL, [DONE], [], []),
        (GOES_WELL, [ran("a", 0, None), DONE], [], []),
        (GOES_WELL, [], [], ["lost: never counted"]),
        (GOES_WELL, [ran("a", 0, None)], [], ["lost: never counted"]),
        (GOES_WELL, [DONE, DONE], [], ["counted 2 times"]),
        (GOES_WELL, [DONE], [letter()], ["counted, and a dead letter too"]),
        (GOES_WELL, [FAILED], [letter()], ["lost: never counted", "counted, and a dead letter too"]),
        (FAILS, [FAILED], [letter()], []),
        (FAILS, [FAILED], [], ["0 dead letters instead of 1"]),
        (FAILS, [FAILED], [letter(), letter()], ["2 dead letters instead of 1"]),
        (FAILS, [FAILED, FAILED], [letter()], ["ran 2 times instead of 1"]),
        (FAILS, [FAILED], [letter("ValueError")], ["dead of ValueError instead of SyntaxError"]),
        (FAILS, [FAILED], [letter(failure_count=2)], ["its dead letter stands for 2 failures instead of 1"]),
        (FAILS, [DONE], [letter()], ["does not parse or cannot be read, but was counted"]),
    ],
)
def test_the_check_names_what_went_wrong(
    expected: Expected, runs: list[Run], letters: list[Letter], wrong: list[str]
) -> None:
    found = problems([FILE], {"a": expected}, {"a": runs}, letters)
    assert found == [f"/package/file.py: {text}" for text in wrong]


def test_the_check_compares_the_counts_themselves() -> None:
    other = Counts(lines=5, nodes=12, functions=2, classes=1)
    [found] = problems([FILE], {"a": GOES_WELL}, {"a": [ran("a", 0, 1, counts=other)]}, [])
    assert "lines=5" in found
    assert "lines=4" in found


def test_the_check_sees_a_limit_that_was_passed() -> None:
    files = [SourceFile(str(number), "package", f"/{number}.py") for number in range(3)]
    by_package = peaks(files, {file.task_id: [ran(file.task_id, 0, 10)] for file in files})
    assert over_limit(by_package, 3) == []
    assert over_limit(by_package, 2) == ["package package: 3 ran at once, 2 allowed"]
