"""A real prefork worker of a plain app, for what lies between its processes. Run by Celery, it is that app, too."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from celery import Celery, platforms
from celery.signals import worker_init, worker_process_init

from celery_backfill.worker import notice, orphans
from celery_backfill.worker.witness import Presence
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
PR_SET_PDEATHSIG = 1


class Told(Exception):
    """Raised in a task that is to stop."""


class LoneWorker:
    """Starts one worker in ``folder``. What happens in it is said by files there, named by what and by whom."""

    def __init__(self, redis_url: str, namespace: str, folder: Path) -> None:
        self._environ = {"LONE_REDIS_URL": redis_url, "LONE_NAMESPACE": namespace, "LONE_FOLDER": str(folder)}
        self._folder = folder
        self.app = _app(self._environ)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, concurrency: int, flags: str = "", pool: str = "prefork", until: str = " ready.") -> None:
        """Start it with so many children; returns when its log has the text ``until``.

        Flags: ``presence``, ``survive_parent``, ``no_death_signal``, ``guard``, ``slow_fork``, ``listen``.
        """
        with (self._folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-m",
                        "celery",
                        "-A",
                        "tests.unit.lone_worker:app",
                        "worker",
                        "-c",
                        str(concurrency),
                    ),
                    *("-P", pool, "-n", self._environ["LONE_NAMESPACE"], "-l", "INFO"),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                env={**os.environ, **self._environ, "LONE_FLAGS": flags, "PYTHONPATH": str(ROOT)},
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: self._has_ended or until in self._log, "it has come so far", START_SECONDS)
        assert not self._has_ended, self._log

    @property
    def _log(self) -> str:
        return (self._folder / "log").read_text()

    @property
    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def send(self, name: str, *args: Any) -> None:
        """Send a task by name."""
        self.app.send_task(name, args, ignore_result=True)

    def pids(self, what: str) -> list[int]:
        """Who said it."""
        return sorted(int(path.suffix[1:]) for path in self._folder.glob(f"{what}.*") if path.read_text())

    def children(self, number: int) -> list[int]:
        """Pids of all children that it ever started, once so many have finished their start."""
        wait_until(lambda: len(self.pids("child")) >= number, f"{number} children have started", START_SECONDS)
        return self.pids("child")

    def wait_said(self, what: str) -> str:
        """What the first one that said this said."""
        (pid, *_) = wait_until(lambda: self.pids(what), f"somebody says {what}", START_SECONDS)
        return (self._folder / f"{what}.{pid}").read_text()

    def touch(self, name: str) -> None:
        """Let those go on that wait for this file."""
        (self._folder / name).touch()

    def kill_parent(self) -> None:
        """SIGKILL its main process only."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill all of it."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.app.close()


def _app(environ: Any) -> Celery:
    app = Celery("lone", broker=environ["LONE_REDIS_URL"])
    app.conf.task_default_queue = app.conf.control_exchange = app.conf.event_exchange = environ["LONE_NAMESPACE"]
    return app


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def _install(app: Celery, folder: Path, flags: Sequence[str]) -> None:
    def say(what: str, text: str = "yes") -> None:
        (folder / f"{what}.{os.getpid()}").write_text(text)

    def in_main_process(**_: Any) -> None:
        kept["parent"] = os.getpid()
        if "presence" in flags:
            kept["presence"] = Presence.open()
            say("identity", kept["presence"].identity)

    def in_child(**_: Any) -> None:
        if "survive_parent" in flags:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        if "guard" in flags:
            orphans.guard_against_orphanhood(kept["parent"])
        if "listen" in flags:
            notice.install_in_child(lambda: Told() if (folder / "lost").exists() else None)
        say("child")

    def after_fork() -> None:
        if kept.get("parent") == os.getppid():
            say("forked")
            _wait_for(folder / "go_on")

    def declare(what: str) -> None:
        @app.task(name=what)
        def busy() -> None:
            say(what)
            WAYS[what]()

    @app.task(name="told")
    def told(at_a_time: float) -> None:
        """Sleeps so long at a time until it is told to stop; waits to be told again, outside, and to end."""
        try:
            with notice.interruptible() as inside:
                if "listen" not in flags:
                    Thread(target=tell, args=(inside,)).start()
                say("inside", type(inside).__name__)
                while True:
                    time.sleep(at_a_time)
        except Told as error:
            say("told", repr(error))
        _wait_for(folder / "end")
        say("ended")

    def tell(inside: notice.Interruptible) -> None:
        _wait_for(folder / "lost")
        inside.interrupt(Told)

    kept: dict[str, Any] = {}
    worker_init.connect(in_main_process, weak=False)
    worker_process_init.connect(in_child, weak=False)
    if "slow_fork" in flags:
        os.register_at_fork(after_in_child=after_fork)
    if "no_death_signal" in flags:
        platforms.set_pdeathsig = lambda name: None
    for what in WAYS:
        declare(what)


def _spin() -> None:
    while True:
        pass


WAYS = {
    "spin": _spin,
    "sleep": lambda: time.sleep(60),
    "hold_the_gil": lambda: ctypes.PyDLL(None).sleep(60),
}

if "LONE_FLAGS" in os.environ:
    app = _app(os.environ)
    _install(app, Path(os.environ["LONE_FOLDER"]), os.environ["LONE_FLAGS"].split())
