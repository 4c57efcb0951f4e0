"""A RabbitMQ node of one's own: for tests that stop and start the broker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kombu import Connection
from kombu.exceptions import OperationalError

from tests.waiting import wait_until
from tests.worker.rabbit import missing

START_SECONDS = 30.0
STOP_SECONDS = 20.0
#: Where Debian keeps the server itself: the one in the path insists on root or its own user.
DEBIAN = "lib/rabbitmq_server-*/sbin/rabbitmq-server"


class Node:
    """One node with ports, data, logs and a port mapper (epmd) of its own, under ``folder``."""

    def __init__(self, server: str, folder: Path) -> None:
        self._server, self._folder = server, folder
        port, distribution, mapper = _free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._epmd_port = str(mapper)
        config = folder / "rabbitmq.conf"
        config.write_text(f"listeners.tcp.local = 127.0.0.1:{port}\n")
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"test{port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; until it answers."""
        log = self._folder / "out.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [self._server],
                env=self._environ,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self._process
        wait_until(lambda: process.poll() is not None or self._answers(), "RabbitMQ answers", START_SECONDS)
        assert process.poll() is None, log.read_text(errors="replace")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it as an operator would, and start it again."""
        assert self._process is not None
        os.kill(int((self._folder / "pid").read_text()), signal.SIGTERM)
        self._process.wait(STOP_SECONDS)
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def impatient(self, seconds: float) -> Iterator[None]:
        """Have it close channels that leave a message unacked for so long: those opened meanwhile."""
        before = self._set(seconds * 1000, tick_ms=300)
        try:
            yield
        finally:
            assert self._set(before, tick_ms=60_000)

    def _set(self, consumer_timeout_ms: float, tick_ms: int) -> float:
        """Set the timeout, and how often it is looked at; the timeout before."""
        words = f"""
            {{ok, Before}} = application:get_env(rabbit, consumer_timeout),
            application:set_env(rabbit, consumer_timeout, {consumer_timeout_ms:.0f}),
            application:set_env(rabbit, channel_tick_interval, {tick_ms}),
            Before.
        """
        control = str(Path(self._server).with_name("rabbitmqctl"))
        command = [control, "--quiet", "--node", self._environ["RABBITMQ_NODENAME"], "eval", words]
        return float(subprocess.check_output(command, env=self._environ, text=True, timeout=60))

    def close(self) -> None:
        """Kill whatever runs."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)
        wait_until(self._end_mapper, "the port mapper is gone")

    def _end_mapper(self) -> bool:
        """Ask the port mapper to end, which it does once it has seen that its node is gone; whether it is gone."""
        epmd = shutil.which("epmd") or "epmd"
        asked = [epmd, "-port", self._epmd_port, "-kill"]
        subprocess.run(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self._epmd_port))) != 0

    def _answers(self) -> bool:
        try:
            with Connection(self.url, connect_timeout=1) as connection:
                connection.connect()
        except (OperationalError, OSError):
            return False
        return True


def installed() -> str | None:
    """The program that starts a node; None where RabbitMQ is not installed."""
    found = sorted(Path("/usr/lib/rabbitmq").glob(DEBIAN))
    return str(found[-1]) if found else shutil.which("rabbitmq-server")


@contextmanager
def own_node(folder: Path) -> Iterator[Node]:
    """A node that runs; gone at the end. Skips the test where there is no RabbitMQ to start."""
    server = installed()
    if server is None:
        missing("no rabbitmq-server is installed")
    assert server is not None
    node = Node(server, folder)
    try:
        node.start()
        yield node
    finally:
        node.close()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in sockets]
