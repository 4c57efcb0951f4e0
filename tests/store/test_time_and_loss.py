"""The store away, restarted, emptied, its clock jumping: what the scripts make of it, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from celery_backfill.errors import StoreChangedError
from celery_backfill.leases.script import GREET
from celery_backfill.leases.store import Admission, Answer, Call, Ending, Epoch, LeaseStore, Terms, encode_limits
from celery_backfill.leases.wire import ScriptCall, Wire

NOW = 1_700_000_000_000
LEASE, GAP = 15.0, 2.5
TASK = "shop.charge"
DONE = Ending(outcome="done")
HOST = "host/boot"


class Member:
    """A worker with a wire and an epoch of its own."""

    def __init__(self, shop: Shop, name: str) -> None:
        self.shop, self.name, self.nonce, self.joined = shop, name, 0, ""
        self.epoch = Epoch(Epoch.NONE)
        self.wire = Wire(shop.url)
        self.store = LeaseStore(
            self.wire,
            shop.namespace,
            clock=lambda: shop.now,
            epoch=self.epoch,
            terms=Terms(longest_lease=LEASE, gap=GAP, host=HOST),
        )
        self.wire.greeting = None
        self.held: dict[str, int] = {}

    def join(self) -> float:
        """Greet, adopt, join; seconds until something new may start."""
        epoch = self.shop.greet(self.store)
        for attempt, token in list(self.held.items()):
            if not self.store.adopt(self.name, token, new(attempt), joined=self.joined):
                del self.held[attempt]
        wait = self.store.join(self.name, [TASK], epoch=epoch, joined=self.joined, identity=f"{HOST}/{self.name}")
        self.epoch.name = self.joined = epoch
        return wait

    def admit(self, attempt: str, **own: Any) -> Answer:
        answer = self.store.admit(self._call(), new(attempt, **own))
        if answer.status == "RUN":
            self.held[attempt] = answer.token
        return answer

    def settle(self, attempt: str, ending: Ending = DONE, *, want: int = 0) -> Answer:
        queues = ["q"] if want else []
        return self.store.settle(self._call(), attempt, self.held.pop(attempt), ending, want=want, queues=queues)

    def claim(self) -> list[str]:
        return [grant.attempt for grant in self.store.claim(self._call(), 1, ["q"]).grants]

    def renew(self) -> list[str]:
        return self.store.renew(self.name, self.nonce, list(self.held.items()))[1]

    def recovered(self, *gone: str) -> list[str]:
        return [found.attempt for found in self.store.recover(gone=gone).recovered]

    def _call(self) -> Call:
        self.nonce += 1
        return Call(self.name, self.nonce)


class Shop:
    """A store whose clock, run id and uptime can be turned."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url, self.namespace = url, namespace
        self.now, self.run_id, self.uptime = NOW, "run1", 3600
        self.client: Any = redis.Redis.from_url(url)
        self.members: list[Member] = []

    def member(self, name: str) -> Member:
        self.members.append(Member(self, name))
        return self.members[-1]

    def greet(self, store: LeaseStore) -> str:
        call = store._greeting()
        arguments = (*call.arguments[:4], self.run_id, self.uptime)
        assert call.script is GREET
        return str(store._wire.run(ScriptCall(call.script, call.keys, arguments))[0].decode())

    def restart(self, *, empty: bool) -> None:
        """The server comes back, with its data or without."""
        self.run_id, self.uptime, self.now = self.run_id + "+", 0, self.now + 1
        if empty:
            self.flush()

    def flush(self) -> None:
        self.now += 1
        for key in self.client.scan_iter(match=f"{{{self.namespace}}}:*"):
            self.client.delete(key)

    def get(self, name: str, field: str) -> str:
        return str(self.client.hget(f"{{{self.namespace}}}:{name}", field).decode())

    def endings(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(f"{{{self.namespace}}}:endings")]

    def close(self) -> None:
        for member in self.members:
            member.wire.close()
        self.client.close()


def new(attempt: str, key: str = "x", **own: Any) -> Admission:
    limits = encode_limits([(key, 1)])
    given = {"attempt": attempt, "queue": "q", "task": TASK, "task_id": attempt, "limits": limits, "message": "{}"}
    return Admission(**{**given, "lease_seconds": LEASE, "dedupe_seconds": 60.0, **own})


@pytest.fixture
def shop(redis_url: str, namespace: str) -> Iterator[Shop]:
    shop = Shop(redis_url, namespace)
    yield shop
    shop.close()


@pytest.fixture
def one(shop: Shop) -> Member:
    member = shop.member("one")
    member.join()
    return member


@pytest.fixture
def two(shop: Shop, one: Member) -> Member:
    member = shop.member("two")
    member.join()
    return member


# Gaps (F24)


def test_while_nobody_was_heard_of_nobodys_lease_ran_out(shop: Shop, one: Member, two: Member) -> None:  # C13, F24
    one.admit("A")
    two.recovered()
    shop.now += 30_000
    assert two.recovered() == []
    assert one.renew() == []
    shop.now += 14_000
    assert two.recovered() == []


def test_a_gap_gives_one_grace_and_no_more(shop: Shop, one: Member, two: Member) -> None:  # F24
    one.admit("A")
    two.recovered()
    shop.now += 30_000
    for _ in range(14):
        assert two.recovered() == []
        shop.now += 1_000
    shop.now += 1_000
    assert two.recovered() == ["A"]


def test_silence_shorter_than_a_gap_is_none(shop: Shop, one: Member, two: Member) -> None:  # F24, C1
    one.admit("A")
    for _ in range(7):
        assert two.recovered() == []
        shop.now += 2_200
    assert two.recovered() == ["A"]


@pytest.mark.parametrize("jump", [10_000, 100_000, -10_000])
def test_a_clock_that_jumps_recovers_nobody_who_lives(shop: Shop, one: Member, two: Member, jump: int) -> None:  # C20
    one.admit("A")
    two.recovered()
    shop.now += jump
    for _ in range(4):
        assert two.recovered() == []
        shop.now += 1_000
    assert one.renew() == []
    for _ in range(14):
        assert two.recovered() == []
        shop.now += 1_000


def test_the_dead_are_recovered_after_a_jump_back(shop: Shop, one: Member, two: Member) -> None:  # C20
    one.admit("A")
    two.recovered()
    shop.now -= 10_000
    seconds = 0
    while not two.recovered():
        shop.now += 1_000
        seconds += 1
    assert seconds <= 10 + LEASE + 1


def test_tokens_grow_when_the_clock_goes_back(shop: Shop, one: Member) -> None:  # C20, F26
    first = one.admit("A").token
    shop.now -= 100_000
    assert one.admit("B", key="y").token > first


# Witnesses (F25)


def test_what_a_witness_found_gone_is_taken_back_at_once(shop: Shop, one: Member, two: Member) -> None:  # F25
    one.admit("A")
    one.admit("B", key="y")
    two.admit("C", key="z")
    assert two.store.recover().neighbours == {"one": f"{HOST}/one", "two": f"{HOST}/two"}
    assert sorted(two.recovered("one")) == ["A", "B"]
    assert two.store.recover().neighbours == {"two": f"{HOST}/two"}
    assert two.renew() == []


def test_who_is_found_gone_in_a_gap_has_no_grace(shop: Shop, one: Member, two: Member) -> None:  # F24, F25
    one.admit("A")
    two.recovered()
    shop.now += 30_000
    assert two.recovered("one") == ["A"]


def test_who_has_left_is_no_neighbour(shop: Shop, one: Member, two: Member) -> None:
    one.store.leave("one")
    assert set(two.store.recover().neighbours) == {"two"}


# Epochs (F26)


def test_a_call_from_another_epoch_does_nothing(shop: Shop, one: Member) -> None:  # F26
    one.admit("A")
    shop.restart(empty=False)
    shop.greet(one.store)
    calls = [lambda: one.admit("B"), one.claim, one.renew, one.recovered, lambda: one.settle("A")]
    for call in calls:
        with pytest.raises(StoreChangedError):
            call()
    assert shop.get("a:A", "state") == "running"


def test_an_emptied_store_is_noticed_without_a_restart(shop: Shop, one: Member) -> None:  # C12
    one.admit("A")
    shop.flush()
    with pytest.raises(StoreChangedError):
        one.admit("B")


def test_a_new_namespace_is_ready_at_once(shop: Shop) -> None:
    assert shop.member("first").join() == 0.0


def test_a_server_that_has_just_started_waits_for_those_who_may_come_back(shop: Shop) -> None:  # C12
    shop.uptime = 0
    member = shop.member("first")
    assert member.join() == 2.0
    assert member.admit("A").status == "LATER"
    shop.now += 2_000
    assert member.admit("A").status == "RUN"


def test_owners_bring_their_leases_before_anything_new_starts(shop: Shop, one: Member, two: Member) -> None:  # C12
    token = one.admit("A").token
    shop.restart(empty=True)
    assert 0 < two.join() <= LEASE
    answer = two.admit("B")
    assert (answer.status, answer.due_in) == ("LATER", LEASE)
    one.join()
    assert shop.get("a:A", "token") == str(token)
    assert two.claim() == []
    shop.now += 15_000
    one.renew()
    assert two.admit("B").status == "BLOCKED"
    assert one.settle("A").status == "SETTLED"
    shop.now += 1
    assert two.claim() == ["B"]


def test_tokens_grow_across_the_loss_of_all_data(shop: Shop, one: Member) -> None:  # C12, F26
    shop.now += 50_000
    token = one.admit("A").token
    shop.restart(empty=True)
    shop.now -= 50_000
    one.join()
    shop.now += 20_000
    one.renew()
    assert one.admit("B", key="y").token > token


def test_tokens_grow_beyond_what_has_ended_when_all_is_lost(shop: Shop, one: Member) -> None:  # C12, C20, F26
    shop.now += 50_000
    token = one.admit("A").token
    one.settle("A")
    shop.restart(empty=True)
    shop.now -= 50_000
    epoch = shop.greet(one.store)
    one.store.join(one.name, [TASK], epoch=epoch, joined=one.joined, seen=token)
    one.epoch.name = epoch
    shop.now += 20_000
    assert one.admit("B", key="y").token > token


def test_after_a_restart_with_data_work_goes_on_when_all_have_joined(shop: Shop, one: Member, two: Member) -> None:
    one.admit("A")
    one.renew()
    two.renew()
    shop.restart(empty=False)
    assert one.join() == LEASE
    assert two.join() == 2.0
    assert one.held == {"A": int(shop.get("a:A", "token"))}
    shop.now += 2_000
    assert two.admit("B", key="y").status == "RUN"
    assert one.settle("A").status == "SETTLED"


def test_after_a_restart_nobody_is_awaited_longer_than_a_lease(shop: Shop, one: Member, two: Member) -> None:
    one.renew()
    two.renew()
    shop.restart(empty=False)
    assert two.join() == LEASE
    shop.now += 15_000
    assert two.admit("B").status == "RUN"


def test_nothing_is_handed_on_before_it_is_safe(shop: Shop, one: Member, two: Member) -> None:  # C11, C12
    one.admit("A")
    one.renew()
    two.renew()
    shop.restart(empty=False)
    assert two.join() == LEASE
    one.wire.close()
    shop.now += 1_000
    assert two.recovered("one") == ["A"]
    assert two.claim() == []
    shop.now += 15_000
    assert two.claim() == ["A"]


def test_what_had_ended_is_not_adopted(shop: Shop, one: Member) -> None:  # F26
    token = one.admit("A").token
    one.settle("A")
    assert not one.store.adopt("one", token, new("A"), joined=one.joined)
    assert not shop.client.exists(f"{{{shop.namespace}}}:a:A")


def test_what_was_recovered_is_not_adopted(shop: Shop, one: Member, two: Member) -> None:  # F26, C3
    token = one.admit("A").token
    shop.now += 15_000
    two.recovered()
    assert not one.store.adopt("one", token, new("A"), joined=one.joined)
    assert two.claim() == ["A"]
    assert not one.store.adopt("one", token, new("A"), joined=one.joined)


@pytest.mark.parametrize("older", ["blocked", "scheduled", "running"])
def test_what_is_stored_of_an_earlier_time_gives_way(shop: Shop, one: Member, two: Member, older: str) -> None:  # F26
    two.admit("A")
    if older == "blocked":
        two.settle("A", Ending(outcome="back"))
    elif older == "scheduled":
        limits = encode_limits([("x", 1)])
        two.settle("A", Ending(outcome="retry", delay_seconds=9.0, limits=limits))
    newer = int(shop.get("a:A", "last")) + 1
    assert one.store.adopt("one", newer, new("A"), joined=one.joined)
    assert one.claim() == []
    assert [found.decode() for found in shop.client.smembers(f"{{{shop.namespace}}}:h:x")] == ["A"]
    one.held["A"] = newer
    assert one.renew() == []
    assert one.settle("A").status == "SETTLED"
    assert shop.client.keys(f"{{{shop.namespace}}}:[hltw]:*") == []


# Ends decided in the store (F17)


def test_poison_is_told_of_once_with_where_it_was_lost(shop: Shop, one: Member, two: Member) -> None:  # C10, F17
    one.admit("A", max_stalls=1, task_id="the task")
    shop.now += 15_000
    two.recovered()
    assert two.claim() == ["A"]
    two.recovered("two")
    [ending] = shop.endings()
    text = ending[b"text"].decode()
    assert (ending[b"kind"], ending[b"task_id"]) == (b"poison", b"the task")
    assert "2 times" in text
    assert "on one, two" in text
    [letter] = [json.loads(fields[b"letter"]) for _, fields in shop.client.xrange(f"{{{shop.namespace}}}:outbox")]
    assert letter["exception_message"] == text
