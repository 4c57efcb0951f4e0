"""Sends tasks for as long as it is told to, so that there is always more to do than may run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from tests.chaos.app import GOODS, PLANS, Goods
from tests.chaos.marks import TICK_SECONDS

#: So many sent tasks have not come to their end, or not for long enough to be taken for lost.
BACKLOG = 24
FORGET_SECONDS = 20.0
WEIGHTS = {"strict": 4, "loose": 2, "free": 1}
#: Plans by weight. Only a process of its own can kill itself.
PLAN_WEIGHTS = {"ok": 70, "retry": 12, "fail": 6, "exhaust": 5, "die": 7}


@dataclass(frozen=True, slots=True)
class Sent:
    """A task that was sent; ``sure`` is False when sending it met an error, so that it may not have been."""

    task_id: str
    task: str
    plan: str
    at: float
    sure: bool


class Load:
    """Sends from a thread of its own. ``ended`` answers which tasks have come to an end."""

    def __init__(
        self, app: Any, *, lease_seconds: float, processes: bool, seed: int, ended: Callable[[], Collection[str]]
    ) -> None:
        self._app, self._lease, self._processes, self._ended = app, lease_seconds, processes, ended
        self._dice = random.Random(seed)
        self._stop = Event()
        self._thread = Thread(target=self._send_all, name="chaos-load", daemon=True)
        self.sent: list[Sent] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send no more; answers when nothing is being sent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)

    def send(self, goods: Goods, ticks: int, plan: str, key: str | None = None) -> Sent:
        """Send one task; with the goods' own key, unless another is given."""
        task_id = f"{goods.name}-{plan}-{len(self.sent) + 1}-{self._dice.getrandbits(32):08x}"
        arguments = (goods.key if key is None else key, ticks, plan)
        sure = True
        try:
            self._app.tasks[goods.name].apply_async(arguments, task_id=task_id, retry=False)
        except Exception:
            # The broker is away: whether it has the message, nobody knows.
            sure = False
        sent = Sent(task_id, goods.name, plan, time.monotonic(), sure)
        self.sent.append(sent)
        return sent

    def _send_all(self) -> None:
        while not self._stop.is_set():
            sent = self._send_one() if self._outstanding() < BACKLOG else None
            if sent is None or not sent.sure:
                self._stop.wait(0.05 if sent is None else 0.3)

    def _send_one(self) -> Sent:
        goods = self._dice.choices(GOODS, [WEIGHTS[one.name.split(".")[1].rstrip("123")] for one in GOODS])[0]
        weights = PLAN_WEIGHTS if self._processes else {**PLAN_WEIGHTS, "die": 0}
        return self.send(goods, self._ticks(), self._dice.choices(list(weights), list(weights.values()))[0])

    def _ticks(self) -> int:
        """Most are short, one in eight is longer than the lease."""
        seconds = self._dice.choices(
            [
                self._dice.uniform(0.04, 0.4),
                self._dice.uniform(0.4, 1.5),
                self._dice.uniform(1.1, 1.6) * self._lease,
            ],
            [60, 28, 12],
        )[0]
        return max(2, round(seconds / TICK_SECONDS))

    def _outstanding(self) -> int:
        ended, since = self._ended(), time.monotonic() - FORGET_SECONDS
        return sum(one.at > since and one.sure and one.task_id not in ended for one in self.sent[-500:])


def succeeds(sent: Sent) -> bool:
    """Whether it is to end as a success."""
    return PLANS[sent.plan]
