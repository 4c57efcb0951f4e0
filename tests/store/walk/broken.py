"""The store's scripts with one guard taken out: what the walk must notice."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files

from celery_backfill.leases import script
from celery_backfill.leases.script import Script

LUA = files("celery_backfill.leases") / "lua"


@dataclass(frozen=True)
class Guard:
    """A piece of ``lua/<file>.lua``, and what is there without it."""

    file: str
    piece: str
    instead: str
    names: str
    """What the guard is for."""
    world: str
    """The world in which its absence shows."""

    def taken_out(self) -> dict[str, Script]:
        """The scripts without it, by name. Raises ``ValueError`` unless it is there exactly once."""
        text = (LUA / f"{self.file}.lua").read_text()
        if text.count(self.piece) != 1:
            raise ValueError(f"{self.file}.lua has {text.count(self.piece)} times {self.piece!r}")
        without = text.replace(self.piece, self.instead)
        return {verb.name: _without(verb, text, without) for verb in script.ALL if _part(text) in verb.text}


def _part(text: str) -> str:
    """What of a file is found in the whole script: its includes are not."""
    return "\n".join(line for line in text.split("\n") if not line.startswith(("--include ", "#!")))


def _without(verb: Script, text: str, without: str) -> Script:
    whole = verb.text.replace(_part(text), _part(without))
    return Script(verb.name, whole, sha1(whole.encode(), usedforsecurity=False).hexdigest())


def guard(file: str, names: str, world: str, piece: str, instead: str = "") -> Guard:
    return Guard(file, piece, instead, names, world)


# Not in the list: that hand_on passes over unknown tasks, and looks for room again behind them (``test_scripts``); that
# nothing is handed on too soon, a later token is not adopted, tokens grow with the clock (``test_time_and_loss``); that
# settle releases by the record's worker and that refresh drops an empty line's turn, which nothing can make differ.


GUARDS = [
    # Identity and repeats
    guard("_answers", "F1 a repeat gets its answer", "without a limit", "if kept[1] == nonce then", "if false then"),
    guard(
        "_answers",
        "F1 an old call does nothing",
        "without a limit",
        "if newest > tonumber(nonce) then",
        "if false then",
    ),
    guard(
        "_answers",
        "F1 the last two answers are kept",
        "without a limit",
        "local place = nonce % 2\n  redis",
        "local place = 0\n  redis",
    ),
    guard(
        "_answers",
        "F1 a repeat leaves out what is over",
        "without a limit",
        "if record[1] == grants[i + 1] then",
        "if true then",
    ),
    guard("_answers", "a pair shares one slot", "pairs", "string.sub(kept[4], -1) == ']'", "false"),
    guard(
        "admit",
        "F1 a repeat is not told of a lease that is over",
        "without a limit",
        "if repeated[1] == 'RUN' and",
        "if false and",
    ),
    guard("admit", "F1 admit repeated", "without a limit", "  return repeated\nend\nif granted", "end\nif granted"),
    guard("claim", "F1 claim repeated", "without a limit", "if repeated then return repeated end"),
    guard("settle", "F1 settle repeated", "without a limit", "if repeated then return repeated end"),
    guard(
        "admit",
        "F3 DUPLICATE",
        "another broker, a crash",
        "if redis.call('EXISTS', P .. 'a:'",
        "if false and redis.call('EXISTS', P .. 'a:'",
    ),
    guard("admit", "F3 DUPLICATE of one that ended", "another broker, a crash", ", P .. 'd:' .. attempt) > 0", ") > 0"),
    guard(
        "admit",
        "F3 GONE",
        "without a limit",
        "if not copy or redis.call('ZREM', KEYS[2], tag) == 0 then",
        "if false then",
    ),
    guard("admit", "C17 acked in the same step", "turns", "redis.call('HDEL', KEYS[3], tag)"),
    guard("_common", "F3 remembered once settled", "another broker, a crash", "if dedupe ~= '0' then", "if false then"),
    guard("_common", "F3 not remembered for ever", "another broker, a crash", "'1', 'PX', dedupe)", "'1')"),
    # Tokens
    guard(
        "settle",
        "invariant 3: the token in settle",
        "a line by priority",
        "if record[1] ~= token then",
        "if not record[1] then",
    ),
    guard("renew", "C4 the token in renew", "without a limit", "if record[1] == token then", "if record[1] then"),
    guard("renew", "C5 a lost lease is told", "without a limit", "lost[#lost + 1] = attempt"),
    guard("_common", "F26 tokens grow", "turns", "math.max(last + 1, ", "math.max("),
    guard("_common", "the token ends with the lease", "turns", "'score', score, 'token', '')", "'score', score)"),
    guard(
        "settle",
        "the token ends with a schedule",
        "two at a time from two queues",
        "'state', 'scheduled', 'token', ''",
        "'state', 'scheduled'",
    ),
    # Leases
    guard("_common", "C1 a lease is listed", "turns", "redis.call('ZADD', P .. 'leases', now + lease, attempt)"),
    guard("_common", "a lease that is over is not listed", "turns", "redis.call('ZREM', P .. 'leases', attempt)"),
    guard("_common", "a worker's leases are noted", "turns", "redis.call('HDEL', P .. 'w:' .. worker, attempt)"),
    guard(
        "renew",
        "L2 renewal",
        "a line by priority",
        "redis.call('ZADD', P .. 'leases', now + tonumber(record[2]), attempt)",
    ),
    guard("renew", "F1 the unnamed is given back", "without a limit", "if named[attempt] ~= token and", "if false and"),
    guard("renew", "F1 but not what is in doubt yet", "without a limit", " and tonumber(nonce) <= last then", " then"),
    guard("renew", "F1 nor the named", "turns", "if named[attempt] ~= token and", "if"),
    guard(
        "renew",
        "F1 named by its token",
        "two slots, a reply lost",
        "if named[attempt] ~= token and",
        "if not named[attempt] and",
    ),
    guard("renew", "the unnamed is released", "without a limit", "    release(attempt, limits, worker)\n"),
    guard(
        "renew",
        "the unnamed waits again",
        "without a limit",
        "    wait_in_line(attempt, record[2], limits, record[3])\n",
    ),
    guard("recover", "F24 only what ran out", "a witness", "'-inf', now, 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    guard("recover", "recovered leases are released", "a line by priority", "  release(attempt, limits, record[1])\n"),
    guard("_stall", "C10 stalls are counted", "a line by priority", "'stalls', 1) <=", "'stalls', 0) <="),
    guard(
        "_stall",
        "C10 the budget of stalls",
        "two slots, two leases pass",
        "'stalls', 1) <= tonumber(max_stalls)",
        "'stalls', 1) > 0",
    ),
    guard(
        "_stall", "C10 poison is recorded", "two slots, two leases pass", "  if letter ~= '' then", "  if false then"
    ),
    guard(
        "recover",
        "poison is forgotten",
        "two slots, two leases pass",
        "  if verdict == 'POISON' then forget(attempt, record[10]) end\n",
    ),
    guard("recover", "F12 recovered to its place", "a line by priority", "limits, record[6])", "limits, arrival(0))"),
    # Settling
    guard(
        "settle",
        "F12 a give-back hands nothing on",
        "a line by priority",
        "outcome == 'back' and 0 or tonumber",
        "tonumber",
    ),
    guard("settle", "settled leases are released", "turns", "  release(attempt, limits, record[2])\n"),
    guard(
        "settle",
        "a stall goes back to its line",
        "without a limit",
        "if stalled(attempt, worker, record[7]) then",
        "if false then",
    ),
    guard("settle", "invariant 6: a letter", "every outcome", "    if ARGV[12] ~= '' then", "    if false then"),
    guard("settle", "settled is forgotten", "turns", "    end\n    forget(attempt, record[8])\n", "    end\n"),
    # Epochs, gaps, witnesses
    guard(
        "admit", "F26 no admission from another epoch", "the data are lost", "if another_epoch then", "if false then"
    ),
    guard("claim", "F26 no claim from another epoch", "a restart", "if another_epoch then", "if false then"),
    guard("renew", "F26 no renewal from another epoch", "the data are lost", "if another_epoch then", "if false then"),
    guard(
        "admit", "C12 nothing is admitted too soon", "the data are lost", "if unsafe_for() > 0 then", "if false then"
    ),
    guard(
        "recover",
        "F24 a gap has a grace",
        "a gap",
        "  if gap == 0 then return false end",
        "  if true then return false end",
    ),
    guard("recover", "F24 a grace ends", "a gap", "  if now >= gap + lease then return false end\n"),
    guard(
        "adopt",
        "F26 what has ended stays so",
        "a restart",
        "elseif tonumber(redis.call('GET', P .. 'token') or '0') >= tonumber(token) then",
        "elseif false then",
    ),
    guard(
        "recover",
        "F25 what the gone held is taken back",
        "a witness",
        "do take_back(attempt) end",
        "do local _ = attempt end",
    ),
    guard(
        "settle",
        "F12 a retry arrives anew",
        "turns",
        "limits_of(ARGV[10]), arrival(tonumber(record[6])))",
        "limits, record[5])",
    ),
    guard(
        "settle",
        "a retry that waits is scheduled",
        "two at a time from two queues",
        "if tonumber(ARGV[8]) > 0 then",
        "if false then",
    ),
    # Lines, permits and turns
    guard("admit", "L1 no overtaking", "a line by priority", "if behind_others or", "if"),
    guard(
        "admit",
        "invariant 1: full at admission",
        "a line by priority",
        "behind_others or full(limits) then",
        "behind_others then",
    ),
    guard(
        "_common",
        "invariant 1: full",
        "a line by priority",
        ">= limit[2] then return true",
        "> limit[2] then return true",
    ),
    guard("_common", "invariant 1: permits taken", "turns", "redis.call('SADD', P .. 'h:' .. limit[1], attempt)"),
    guard("_common", "invariant 1: permits given back", "turns", "redis.call('SREM', P .. 'h:' .. limit[1], attempt)"),
    guard(
        "_common",
        "L1 a key that is taken loses its turn",
        "two at a time from two queues",
        "redis.call('SADD', P .. 'h:' .. limit[1], attempt)\n    refresh_key(limit[1])",
        "redis.call('SADD', P .. 'h:' .. limit[1], attempt)",
    ),
    guard(
        "_common",
        "L5 a key that is released gets its turn",
        "a line by priority",
        "redis.call('SREM', P .. 'h:' .. limit[1], attempt)\n    refresh_key(limit[1])",
        "redis.call('SREM', P .. 'h:' .. limit[1], attempt)",
    ),
    guard(
        "_common",
        "who waits is found",
        "turns",
        "redis.call('SADD', P .. 'b', key)\n  refresh(queue, key)",
        "redis.call('SADD', P .. 'b', key)",
    ),
    guard("_common", "the queues of a key", "turns", "redis.call('SADD', P .. 'kq:' .. key, queue)"),
    guard("_common", "the keys that wait", "turns", "redis.call('SADD', P .. 'b', key)"),
    guard("_common", "an empty line has no queue", "turns", "redis.call('SREM', P .. 'kq:' .. key, queue)"),
    guard("_common", "an empty line has no key", "turns", "redis.call('SREM', P .. 'b', key)"),
    guard(
        "_common",
        "one line empty, another not",
        "two at a time from two queues",
        "if redis.call('EXISTS', P .. 'kq:' .. key) == 0 then",
        "if true then",
    ),
    guard(
        "_common", "a turn is kept", "turns", "elseif not redis.call('ZSCORE', P .. 't:' .. queue, key) then", "else"
    ),
    guard("_hand_on", "who runs leaves the line", "turns", "redis.call('ZREM', line(queue, key), attempt)"),
    guard("_hand_on", "keys take turns", "turns", "redis.call('ZREM', P .. 't:' .. queue, key)"),
    guard("_hand_on", "the lowest turn first", "turns", "tonumber(first[2]) < turn)", "tonumber(first[2]) > turn)"),
    guard("_hand_on", "what runs on", "turns", "      refresh(queue, key)\n    else", "    else"),
    guard(
        "_hand_on",
        "due ones leave the schedule",
        "two at a time from two queues",
        "redis.call('ZREM', P .. 'sched', attempt)",
    ),
    guard("_hand_on", "due ones join", "two at a time from two queues", "    promote()\n", ""),
    guard(
        "_hand_on",
        "F12 due ones arrive anew",
        "two at a time from two queues",
        "arrival(tonumber(record[3]))",
        "redis.call('HGET', P .. 'a:' .. attempt, 'score')",
    ),
    guard("_hand_on", "only what is due", "two at a time from two queues", "'-inf', now,", "'-inf', '+inf',"),
    guard("_hand_on", "as many as wanted", "turns", "while #grants < 2 * want and", "while"),
]
