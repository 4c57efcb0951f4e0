"""Each verb by itself, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_backfill import embedded
from celery_backfill.errors import StoreUnavailableError
from celery_backfill.leases.store import Admission, Answer, Call, Ending, LeaseStore, encode_limits
from celery_backfill.leases.wire import Wire

NOW = 1_700_000_000_000
TASK = "shop.charge"
DONE = Ending(outcome="done")
DEAD = Ending(outcome="dead", letter='{"reason": "failed"}')
BACK = Ending(outcome="back")
ODD_KEYS = ["{x}", "}{", "a\nb", "schlüssel:✓", " ", "*", "l:1:q:", "k" * 4096, "\x00", '"\\', "1"]


class Bench:
    """A store with a clock to turn, and workers that number their calls."""

    def __init__(self, url: str, namespace: str) -> None:
        self.now = NOW
        self.client: Any = redis.Redis.from_url(url)
        self.prefix = f"{{{namespace}}}:"
        self.broker = (f"{self.prefix}index", f"{self.prefix}unacked")
        self.wire = Wire(url)
        self.store = LeaseStore(self.wire, namespace, clock=lambda: self.now, broker_keys=self.broker)
        self.nonces: dict[str, int] = {}
        for worker in ("one", "two"):
            self.store.join(worker, [TASK])

    def call(self, worker: str = "one") -> Call:
        self.nonces[worker] = self.nonces.get(worker, 0) + 1
        return Call(worker, self.nonces[worker])

    def admit(self, attempt: str, key: str | None = "x", *, worker: str = "one", **own: Any) -> Answer:
        return self.store.admit(self.call(worker), new(attempt, key, **own))

    def settle(self, attempt: str, token: int, ending: Ending = DONE, *, want: int = 0, worker: str = "one") -> Answer:
        return self.store.settle(self.call(worker), attempt, token, ending, want=want, queues=["q"] if want else [])

    def claim(self, want: int = 1, *, worker: str = "one", queues: tuple[str, ...] = ("q",)) -> Answer:
        return self.store.claim(self.call(worker), want, queues)

    def claimed(self, want: int = 1, **how: Any) -> list[str]:
        return [grant.attempt for grant in self.claim(want, **how).grants]

    def dump(self) -> dict[str, bytes]:
        """Everything but what the last answers were."""
        names = sorted(self.client.scan_iter(match=f"{self.prefix}*"))
        return {name: self.client.dump(name) for name in names if not name.startswith(f"{self.prefix}r:".encode())}

    def outbox(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(f"{self.prefix}outbox")]

    def close(self) -> None:
        self.wire.close()
        self.client.close()


def new(attempt: str, key: str | None = "x", capacity: int = 1, **own: Any) -> Admission:
    limits = encode_limits([(key, capacity)] if key is not None else ())
    return Admission(**{"attempt": attempt, "queue": "q", "task": TASK, "task_id": attempt, "limits": limits, **own})


@pytest.fixture
def bench(redis_url: str, namespace: str) -> Iterator[Bench]:
    bench = Bench(redis_url, namespace)
    yield bench
    bench.close()


# Repeats (F1)


def test_a_repeat_of_admit_gets_the_same_answer(bench: Bench) -> None:  # F1
    first = bench.store.admit(Call("one", 1), new("A"))
    before = bench.dump()
    assert bench.store.admit(Call("one", 1), new("A")) == first
    assert first.status == "RUN"
    assert bench.dump() == before


def test_a_repeat_of_claim_gets_the_same_answer(bench: Bench) -> None:  # F1, C24
    token = bench.admit("A").token
    bench.admit("B", message="the message")
    bench.settle("A", token)
    first = bench.store.claim(Call("two", 1), 1, ["q"])
    before = bench.dump()
    assert bench.store.claim(Call("two", 1), 1, ["q"]) == first
    assert [grant.message for grant in first.grants] == [b"the message"]
    assert bench.dump() == before


def test_a_repeat_of_settle_gets_the_same_answer(bench: Bench) -> None:  # F1, C24
    token = bench.admit("A").token
    bench.admit("B")
    first = bench.settle("A", token, want=1)
    before = bench.dump()
    assert bench.store.settle(Call("one", 3), "A", token, DONE, want=1, queues=["q"]) == first
    assert first.status == "SETTLED"
    assert [grant.attempt for grant in first.grants] == ["B"]
    assert bench.dump() == before


def test_a_repeat_hands_out_no_lease_that_is_over(bench: Bench) -> None:  # F1, C4
    token = bench.admit("A").token
    bench.now += 15_001
    bench.store.recover()
    assert bench.claimed(worker="two") == ["A"]
    assert token
    assert bench.store.admit(Call("one", 1), new("A")).status == "DUPLICATE"


def test_an_old_call_changes_nothing(bench: Bench) -> None:  # F1
    token = bench.admit("A").token
    bench.admit("B")
    bench.admit("C", "y")
    before = bench.dump()
    for verb in (
        lambda: bench.store.admit(Call("one", 1), new("D", "z")),
        lambda: bench.store.settle(Call("one", 1), "A", token, DONE, want=1, queues=["q"]),
        lambda: bench.store.claim(Call("one", 1), 1, ["q"]),
    ):
        assert verb().status == "OLD"
    assert bench.dump() == before


def test_a_lease_that_its_worker_never_heard_of_is_given_back(bench: Bench) -> None:  # F1, C24
    bench.admit("A")
    known, lost = bench.store.renew("one", 1, [])
    assert (known, lost) == (True, [])
    assert bench.claimed(worker="two") == ["A"]
    assert bench.client.hget(f"{bench.prefix}a:A", "stalls") == b"0"


def test_a_lease_in_doubt_is_not_given_back(bench: Bench) -> None:  # F1
    bench.admit("A")
    bench.store.renew("one", 0, [])
    assert bench.claimed(worker="two") == []


def test_a_pair_shares_one_slot(bench: Bench) -> None:  # L22
    token = bench.admit("A").token
    bench.admit("B")
    settled = bench.settle("A", token, want=1)
    admitted = bench.admit("C", "y", shares_slot=True)
    assert [grant.attempt for grant in settled.grants] == ["B"]
    assert admitted.status == "LATER"
    assert not bench.client.exists(f"{bench.prefix}a:C")


# Tokens (L3, C4, F26)


def test_a_stale_settle_changes_nothing(bench: Bench) -> None:  # L3, C3, C4
    stale = bench.admit("A").token
    bench.now += 15_001
    bench.store.recover()
    [grant] = bench.claim().grants
    before = bench.dump()
    for ending in (DONE, DEAD, BACK, Ending(outcome="stalled"), Ending(outcome="retry")):
        assert bench.settle("A", stale, ending).status == "STALE"
    assert bench.dump() == before
    assert bench.store.renew("one", 9, [("A", stale)]) == (True, ["A"])
    assert grant.token > stale


def test_a_stale_holder_finishes_twice(bench: Bench) -> None:  # L3
    stale = bench.admit("A").token
    bench.admit("B", worker="two")
    bench.now += 15_001
    bench.store.recover()
    assert bench.claimed(worker="two") == ["A"]
    bench.settle("A", stale)
    bench.settle("A", stale)
    assert bench.claimed(2) == []
    assert bench.client.scard(f"{bench.prefix}h:x") == 1


def test_tokens_grow_after_a_data_loss(bench: Bench) -> None:  # F26, C12
    first = bench.admit("A").token
    for name in bench.client.scan_iter(match=f"{bench.prefix}*"):
        bench.client.delete(name)
    bench.now += 1
    assert bench.admit("B").token > first


def test_tokens_grow_while_the_clock_goes_back(bench: Bench) -> None:  # F26, C20
    first = bench.admit("A").token
    bench.now -= 10_000
    assert bench.admit("B", "y").token > first


def test_a_late_renewal_before_recovery_succeeds(bench: Bench) -> None:  # F24, C5
    token = bench.admit("A").token
    bench.now += 60_000
    assert bench.store.renew("one", 1, [("A", token)]) == (True, [])
    assert bench.store.recover().recovered == []


# Lines and turns (F10, F12, L12)


def test_priority_then_arrival(bench: Bench) -> None:  # F12
    token = bench.admit("A").token
    bench.admit("late", rank=5)
    bench.admit("first", rank=0)
    bench.admit("second", rank=0)
    attempt, order = "A", []
    for _ in range(3):
        [grant] = bench.settle(attempt, token, want=1).grants
        attempt, token = grant.attempt, grant.token
        order.append(attempt)
    assert order == ["first", "second", "late"]


def test_recovered_and_given_back_ones_keep_their_place(bench: Bench) -> None:  # F12
    token = bench.admit("A").token
    bench.admit("B")
    bench.settle("A", token, BACK)
    [grant] = bench.claim().grants
    assert grant.attempt == "A"
    bench.now += 15_001
    bench.store.recover()
    assert bench.claimed() == ["A"]


def test_a_retry_is_a_new_arrival_with_new_keys_and_message(bench: Bench) -> None:  # F12
    token = bench.admit("A", message="old").token
    bench.admit("B")
    ending = Ending(outcome="retry", message="new", limits=encode_limits([("y", 1)]), queue="p")
    [grant] = bench.settle("A", token, ending, want=1).grants
    assert grant.attempt == "B"
    [again] = bench.claim(queues=("q", "p")).grants
    assert (again.attempt, again.message) == ("A", b"new")
    assert bench.client.smembers(f"{bench.prefix}h:y") == {b"A"}


def test_a_retry_comes_after_those_who_wait(bench: Bench) -> None:  # F12
    token = bench.admit("A").token
    bench.admit("B")
    [grant] = bench.settle("A", token, Ending(outcome="retry", limits=new("A").limits), want=1).grants
    assert grant.attempt == "B"


def test_a_give_back_hands_nothing_on(bench: Bench) -> None:  # F12
    token = bench.admit("A").token
    assert bench.settle("A", token, BACK, want=1).grants == ()
    assert bench.claimed() == ["A"]


def test_a_scheduled_one_waits_for_its_time(bench: Bench) -> None:  # L18
    token = bench.admit("A").token
    answer = bench.settle("A", token, Ending(outcome="retry", delay_seconds=2, limits=new("A").limits), want=1)
    assert (answer.grants, answer.due_in) == ((), 2)
    assert bench.admit("B").status == "RUN"
    bench.settle("B", bench.claim().token or _token(bench, "B"))
    assert bench.claimed() == []
    bench.now += 2_000
    assert bench.claimed() == ["A"]


def test_keys_take_turns(bench: Bench) -> None:  # F10, L7
    for key in ("x", "y", "z"):
        bench.admit(f"{key}0", key, worker="two")
        for number in (1, 2, 3):
            bench.admit(f"{key}{number}", key, worker="two")
    for key in ("x", "y", "z"):
        bench.settle(f"{key}0", _token(bench, f"{key}0"), worker="two")
    order = []
    for _ in range(9):
        [grant] = bench.claim().grants
        order.append(grant.attempt)
        bench.settle(grant.attempt, grant.token)
    assert [name[0] for name in order] == ["x", "y", "z"] * 3
    assert [name[1] for name in order] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3


def test_unknown_tasks_are_passed_over(bench: Bench) -> None:  # F10, L16
    token = bench.admit("A").token
    bench.admit("strange", task="shop.new")
    bench.admit("B")
    bench.settle("A", token)
    [grant] = bench.claim().grants
    assert grant.attempt == "B"
    bench.settle("B", grant.token)
    assert bench.claimed() == []
    bench.store.join("two", [TASK, "shop.new"])
    assert bench.claimed(worker="two") == ["strange"]


def test_behind_an_unknown_task_there_must_be_room(bench: Bench) -> None:  # F10, F27
    token = bench.admit("A").token
    bench.admit("B")
    bench.admit("strange", task="shop.new", limits=encode_limits([("x", 2)]))
    bench.admit("C")
    assert [grant.attempt for grant in bench.settle("A", token, want=1).grants] == ["B"]
    assert bench.claimed() == []


def test_queues_of_one_key_are_held_together(bench: Bench) -> None:  # F10
    token = bench.admit("A").token
    assert bench.admit("B", queue="p").status == "BLOCKED"
    assert bench.settle("A", token, want=1).grants == ()
    assert bench.claimed(queues=("p",)) == ["B"]


@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_odd_keys_hold_and_are_no_other_key(bench: Bench, key: str) -> None:  # L12, X5
    token = bench.admit("A", key).token
    assert bench.admit("B", key).status == "BLOCKED"
    assert bench.admit("C", key + "'").status == "RUN"
    assert [grant.attempt for grant in bench.settle("A", token, want=1).grants] == ["B"]


def test_odd_names_of_attempts_queues_and_workers(bench: Bench) -> None:  # L12
    odd = "a:b\n{c} ✓"
    bench.store.join(odd, [TASK])
    answer = bench.store.admit(Call(odd, 1), new(odd, queue=odd))
    assert bench.store.admit(Call(odd, 2), new("B", queue=odd)).status == "BLOCKED"
    settled = bench.store.settle(Call(odd, 3), odd, answer.token, DONE, want=1, queues=[odd])
    assert [grant.attempt for grant in settled.grants] == ["B"]


def test_a_line_name_belongs_to_one_queue_and_key(bench: Bench) -> None:  # L11, L12
    bench.admit("A", "b:c", queue="a")
    bench.admit("B", "b:c", queue="a")
    bench.admit("C", "c", queue="a:b")
    bench.admit("D", "c", queue="a:b")
    bench.settle("A", _token(bench, "A"))
    assert bench.claimed(2, queues=("a:b",)) == []
    assert bench.claimed(2, queues=("a",)) == ["B"]


# Ends and identity (F3, C10, C17)


def test_a_redelivery_of_what_is_known_is_a_duplicate(bench: Bench) -> None:  # F3, C17
    token = bench.admit("A", dedupe_seconds=60).token
    assert bench.admit("A", dedupe_seconds=60, worker="two").status == "DUPLICATE"
    bench.settle("A", token)
    assert bench.admit("A", dedupe_seconds=60, worker="two").status == "DUPLICATE"
    assert 0 < bench.client.pttl(f"{bench.prefix}d:A") <= 60_000


def test_admission_acks_at_a_broker_on_the_same_redis(bench: Bench) -> None:  # F3, F4
    bench.client.zadd(bench.broker[0], {"tag": 1})
    bench.client.hset(bench.broker[1], "tag", "the broker's copy")
    assert bench.admit("A", delivery_tag="tag").status == "RUN"
    assert bench.client.hget(f"{bench.prefix}a:A", "message") == b"the broker's copy"
    assert not bench.client.exists(*bench.broker)
    assert bench.admit("A", delivery_tag="tag", worker="two").status == "GONE"


def test_a_message_that_went_back_to_the_broker_is_not_ours(bench: Bench) -> None:  # F3
    bench.client.hset(bench.broker[1], "tag", "the broker's copy")
    assert bench.admit("A", delivery_tag="tag").status == "GONE"
    assert not bench.client.exists(f"{bench.prefix}a:A")


def test_the_stall_budget_ends_as_poison(bench: Bench) -> None:  # C10
    bench.admit("A", max_stalls=1, message="the message")
    for verdict in ("BACK", "POISON"):
        bench.now += 15_001
        assert [found.verdict for found in bench.store.recover().recovered] == [verdict]
        bench.claim()
    [entry] = bench.outbox()
    assert (entry[b"kind"], entry[b"message"], entry[b"stalls"]) == (b"failed", b"the message", b"2")
    assert json.loads(entry[b"letter"])["reason"] == "poison"


def test_a_dead_one_leaves_one_letter_and_nothing_else(bench: Bench) -> None:  # D2, L5
    token = bench.admit("A", message="the message").token
    bench.settle("A", token, DEAD)
    bench.settle("A", token, DEAD)
    [entry] = bench.outbox()
    assert (entry[b"kind"], entry[b"letter"]) == (b"failed", DEAD.letter.encode())
    left = {name.removeprefix(bench.prefix.encode())[:2] for name in bench.dump()}
    assert left <= {b"k:", b"ou", b"se", b"to", b"wo"}


def test_a_success_can_resolve_a_letter(bench: Bench) -> None:  # F29
    bench.settle("A", bench.admit("A").token, Ending(outcome="done", letter='{"requeue": 1}'))
    assert [entry[b"kind"] for entry in bench.outbox()] == [b"resolved"]


def test_unrecorded_poison_leaves_no_letter(bench: Bench) -> None:  # C10
    bench.admit("A", max_stalls=0, recorded=False)
    bench.now += 15_001
    assert [found.verdict for found in bench.store.recover().recovered] == ["POISON"]
    assert bench.outbox() == []


def test_a_worker_that_is_not_known_is_told_so(bench: Bench) -> None:  # F10
    assert bench.store.renew("three", 0, []) == (False, [])


# The server


def test_a_flush_of_scripts_goes_unnoticed(bench: Bench) -> None:  # C19
    token = bench.admit("A").token
    bench.client.script_flush()
    bench.admit("B")
    bench.client.script_flush()
    assert [grant.attempt for grant in bench.settle("A", token, want=1).grants] == ["B"]


def test_a_wire_connects_as_often_as_it_has_to(bench: Bench) -> None:  # C11
    for _ in range(300):
        bench.wire.close()
        bench.claim()


@pytest.fixture
def own_server_url(servers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that nobody else uses, for its settings are changed; never one that the environment names."""
    monkeypatch.delenv("BACKFILL_REDIS_URL", raising=False)
    folder = servers_folder / "own"
    yield embedded.redis_url(folder)
    embedded.remove(folder)


def test_with_full_memory_all_goes_on_but_admission(own_server_url: str) -> None:  # F28
    bench = Bench(own_server_url, "full")
    token = bench.admit("A").token
    bench.admit("B")
    bench.admit("C", "y")
    bench.client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailableError):
        bench.admit("D", "z")
    assert bench.store.renew("one", 3, [("A", token), ("C", _token(bench, "C"))]) == (True, [])
    assert [grant.attempt for grant in bench.settle("A", token, DEAD, want=1).grants] == ["B"]
    bench.now += 15_001
    assert {found.attempt for found in bench.store.recover().recovered} == {"B", "C"}
    assert sorted(bench.claimed(2)) == ["B", "C"]
    assert len(bench.outbox()) == 1
    bench.close()


def _token(bench: Bench, attempt: str) -> int:
    return int(bench.client.hget(f"{bench.prefix}a:{attempt}", "token"))
