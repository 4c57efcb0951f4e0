"""The worlds that are walked to the end. What is rare in each is bounded by its budget; nothing else is cut."""

from __future__ import annotations

from .world import Attempt, Budget, World

ONE_KEY = {"A": Attempt("x"), "B": Attempt("x")}
TWO_KEYS = {"A": Attempt("x"), "B": Attempt("x"), "C": Attempt("y")}
ENDS = ("done", "dead", "stalled", "back", "retry", "later")

WORLDS = [
    World(name="every outcome", attempts=TWO_KEYS, outcomes=ENDS),
    World(name="two replies lost", attempts=ONE_KEY, budget=Budget(unheard=2)),
    World(
        name="a reply lost, a lease passes, something is given back",
        attempts=ONE_KEY,
        outcomes=("done", "back"),
        budget=Budget(unheard=1, expiries=1),
    ),
    World(
        name="two slots, two leases pass",
        attempts=TWO_KEYS,
        slots=2,
        budget=Budget(expiries=2),
    ),
    World(
        name="two slots, a reply lost",
        attempts=ONE_KEY,
        slots=2,
        prefetch=2,
        budget=Budget(unheard=1, expiries=1),
    ),
    World(
        name="a visibility timeout",
        attempts=ONE_KEY,
        prefetch=2,
        budget=Budget(unheard=1, redeliveries=1),
    ),
    World(
        name="another broker",
        attempts=ONE_KEY,
        one_redis=False,
        budget=Budget(unheard=1, redeliveries=1),
    ),
    World(
        name="another broker, a crash",
        attempts=ONE_KEY,
        one_redis=False,
        outcomes=("done", "dead"),
        budget=Budget(redeliveries=2, expiries=1, crashes=1),
    ),
    World(name="a crash", attempts=ONE_KEY, budget=Budget(unheard=1, crashes=1)),
    World(name="pairs", attempts=ONE_KEY, pairs=True, wants=(0, 1), budget=Budget(unheard=1, expiries=1)),
    World(name="pairs of three", attempts=TWO_KEYS, pairs=True, budget=Budget(unheard=1)),
    World(
        name="without a limit",
        attempts={"A": Attempt(), "B": Attempt("x")},
        outcomes=("done", "retry", "stalled"),
        budget=Budget(unheard=1),
    ),
    World(
        name="a line by priority",
        attempts={"A": Attempt("x", rank=1), "B": Attempt("x", rank=1), "C": Attempt("x")},
        outcomes=("done", "back", "retry"),
        wants=(0, 1),
        budget=Budget(expiries=1),
    ),
    World(
        name="two at a time from two queues",
        attempts={"A": Attempt("x", 2), "B": Attempt("x", 2), "C": Attempt("x", 2, "p")},
        outcomes=("done", "later"),
        wants=(0, 1),
        slots=2,
        claims=2,
    ),
    World(
        name="turns",
        attempts={"A": Attempt(), "B": Attempt(), "C": Attempt("x", queue="p")},
        outcomes=("done", "retry"),
        wants=(0, 1),
    ),
    World(
        name="the data are lost",
        attempts=ONE_KEY,
        one_redis=False,
        epochs=True,
        budget=Budget(losses=1),
    ),
    World(
        name="a restart",
        attempts=ONE_KEY,
        epochs=True,
        loses=("settle", "adopt", "join"),
        budget=Budget(restarts=1, unheard=1),
    ),
    World(
        name="a rollback",
        attempts=ONE_KEY,
        one_redis=False,
        epochs=True,
        budget=Budget(rollbacks=1),
    ),
    World(
        name="a gap",
        attempts=ONE_KEY,
        epochs=True,
        budget=Budget(gaps=1, crashes=1),
    ),
    World(
        name="a witness",
        attempts=ONE_KEY,
        epochs=True,
        witnesses=True,
        budget=Budget(unheard=1, crashes=1),
    ),
]
