"""The README's quick start, done as it says: its file in an empty directory, its commands one after the other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_backfill import embedded
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """The README's code block under ``<!-- quick start: name -->``."""
    found = re.search(rf"<!-- quick start: {re.escape(name)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block {name!r}"
    return found[1]


COMMANDS = [line.removeprefix("$ ") for line in block("commands").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "shop.py").write_text(block("shop.py"))
    yield tmp_path
    embedded.stop(tmp_path / ".backfill")


def environment() -> dict[str, str]:
    """A shell with the virtual environment active, and no servers of one's own."""
    own = ("BACKFILL_REDIS_URL", "BACKFILL_POSTGRES_URL")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1"}


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_ten_lines_as_the_readme_has_it() -> None:
    assert len([line for line in block("shop.py").splitlines() if line]) <= 10


def test_the_quick_start(folder: Path) -> None:
    migrate, worker, send, listing, requeue = COMMANDS
    run(migrate, folder)
    with (folder / "worker.log").open("w") as log:
        process = subprocess.Popen(
            worker, shell=True, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        run(send, folder)
        wait_until(lambda: "non_retryable" in run(listing, folder), "the failed charge is listed", timeout=60)
        run(requeue, folder)
        again = '"failure_count": 2'
        wait_until(lambda: again in run(f"{listing} --json", folder), "it failed again: same letter", timeout=60)
        assert run(f"{listing} --json", folder).count('"task_id"') == 1
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
