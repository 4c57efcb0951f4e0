"""A place with a worker for each pool, opened when it is first asked for and shared by a module's tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.worker.place import Opener, Place
from tests.worker.workers import Worker


class Shops:
    """Called with a pool's name it gives that pool's place. Options are those of the worker.

    Solo has one slot, and does one thing at a time; beside it there is a worker whose queue is apart.
    """

    def __init__(self, open_place: Opener, **options: Any) -> None:
        self._open_place, self._options = open_place, options
        self._opened: dict[str, Place] = {}

    def __call__(self, pool: str) -> Place:
        if pool not in self._opened:
            self._opened[pool] = place = self._open_place()
            place.worker(pool=pool, **self._options)
            if pool == "solo":
                place.worker(pool="threads", concurrency=1, queues=(_aside(place),))
        return self._opened[pool]

    def hold(self, pool: str, key: str) -> str:
        """Hold a key until the file of its name is there, by a task that runs; its id."""
        place = self(pool)
        options = {"queue": _aside(place)} if pool == "solo" else {}
        holder = place.send("one", key, until=key, options=options)
        place.wait_started(holder)
        return holder

    def stop(self) -> None:
        """Tell all workers to stop, at once: each takes its seconds."""
        for place in self._opened.values():
            for worker in place.crew.all:
                worker.ask_to_stop()


@contextmanager
def shops_of(open_shared_place: Opener, **options: Any) -> Iterator[Shops]:
    """Shops for the tests of a module. Options are those of the workers."""
    shops = Shops(open_shared_place, **options)
    yield shops
    shops.stop()


def _aside(place: Place) -> str:
    return f"{place.namespace}-aside"


def queue_of(place: Place, pool: str) -> str:
    """The queue of that pool's worker, where there is one of each."""
    return f"{place.namespace}-{pool}"


def one_of_each(place: Place, pools: Sequence[str], **options: Any) -> dict[str, Worker]:
    """A worker of each pool in one place, each on a queue of its own; all ready. Options are those of the workers."""
    workers = {pool: place.worker(pool=pool, queues=(queue_of(place, pool),), ready=False, **options) for pool in pools}
    for worker in workers.values():
        worker.wait_ready()
    return workers


def successor_of_all(place: Place, pools: Sequence[str], **options: Any) -> Worker:
    """One more worker, on the queues of all those; ready."""
    return place.worker(queues=[queue_of(place, pool) for pool in pools], concurrency=2 * len(pools), **options)
