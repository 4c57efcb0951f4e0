#!lua
--include common
--include answers
-- A new attempt: lease it with all its permits, or let it wait in line; and ack it at the broker in the same step
-- where broker and store are one Redis. The message is stored before it is acked.
--
-- KEYS  1 namespace   2 broker's unacked_index, 3 broker's unacked (both only with a delivery tag)
-- ARGV  1 time  2 worker  3 nonce  4 attempt  5 delivery tag or ""  6 queue  7 priority rank (0 first)
--       8 limits  9 lease ms  10 max stalls  11 ms to remember it once settled  12 task  13 task id
--       14 message, or "" to take the broker's own copy  15 "1" if its final failure is to be recorded
--       16 "1" if it shares its slot with the call before: where that one granted something, nothing is done
-- Answer  {RUN, token, -1, 0} | {BLOCKED, "0", -1, runnable}
--         | {DUPLICATE, ...} known already, or the repeat of a call whose lease is over
--         | {LATER, ...} the slot is taken | {GONE, ...} the broker has given the message to someone else | {OLD, ...}
local worker, nonce, attempt, tag, queue = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local repeated, granted = answered(worker, nonce)
if repeated then
  -- A lease that was lost meanwhile is not started on: a repeat tells what still holds.
  if repeated[1] == 'RUN' and redis.call('HGET', P .. 'a:' .. attempt, 'token') ~= repeated[2] then
    repeated[1], repeated[2] = 'DUPLICATE', '0'
  end
  return repeated
end
if granted and ARGV[16] == '1' then return conclude(worker, nonce, 'LATER', '0', -1, 1, {}) end

local message = ARGV[14]
if tag ~= '' then
  local copy = redis.call('HGET', KEYS[3], tag)
  if not copy or redis.call('ZREM', KEYS[2], tag) == 0 then
    return conclude(worker, nonce, 'GONE', '0', -1, 0, {})
  end
  redis.call('HDEL', KEYS[3], tag)
  if message == '' then message = copy end
end

if redis.call('EXISTS', P .. 'a:' .. attempt, P .. 'd:' .. attempt) > 0 then
  return conclude(worker, nonce, 'DUPLICATE', '0', -1, 0, {})
end

local limits, rank, lease = limits_of(ARGV[8]), tonumber(ARGV[7]), tonumber(ARGV[9])
local score = arrival(rank)
local function record()
  return 'task', ARGV[12], 'task_id', ARGV[13], 'queue', queue, 'score', score, 'rank', rank, 'limits', ARGV[8],
    'lease', lease, 'stalls', 0, 'max_stalls', ARGV[10], 'dedupe', ARGV[11], 'born', now, 'message', message,
    'recorded', ARGV[15]
end

-- Who comes later does not overtake those who wait in the same line, even while a permit is free for them.
local behind_others = limits[1] and redis.call('EXISTS', line(queue, line_key(limits))) == 1
if behind_others or full(limits) then
  redis.call('HSET', P .. 'a:' .. attempt, record())
  wait_in_line(attempt, queue, limits, score)
  return conclude(worker, nonce, 'BLOCKED', '0', -1, runnable({queue}), {})
end
local token = grant(attempt, limits, worker, nonce, lease, record())
return conclude(worker, nonce, 'RUN', token, -1, 0, {})
