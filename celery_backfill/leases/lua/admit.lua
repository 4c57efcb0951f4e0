#!lua
--include common
--include answers
-- A new attempt: lease it with all its permits, or let it wait in line; and ack it at the broker in the same step
-- where broker and store are one Redis. The message is stored before it is acked.
--
-- KEYS  1 namespace   2 broker's unacked_index, 3 broker's unacked (both only with a delivery tag)
-- ARGV  1 time  2 epoch  3 worker  4 nonce  5 attempt  6 delivery tag or ""  7 queue  8 priority rank (0 first)
--       9 limits  10 lease ms  11 max stalls  12 ms to remember it once settled  13 task  14 task id
--       15 message, or "" to take the broker's own copy  16 "1" if its final failure is to be recorded
--       17 "1" if it shares its slot with the call before: where that one granted something, nothing is done
--       18 the name by which a redelivery of it will come, or ""
-- Answer  {RUN, token, -1, 0} | {BLOCKED, "0", -1, runnable}
--         | {DUPLICATE, ...} known already, or the repeat of a call whose lease is over
--         | {LATER, ...} the slot is taken, or (with a due time) nothing new may start yet | {GONE, ...} the broker has given the message to someone else | {OLD, ...}
local worker, nonce, attempt, tag, queue = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

if another_epoch then return ANOTHER_EPOCH end
local repeated, granted = answered(worker, nonce)
if repeated then
  -- A lease that was lost meanwhile is not started on: a repeat tells what still holds.
  if repeated[1] == 'RUN' and redis.call('HGET', P .. 'a:' .. attempt, 'token') ~= repeated[2] then
    repeated[1], repeated[2] = 'DUPLICATE', '0'
  end
  return repeated
end
if granted and ARGV[17] == '1' then return conclude(worker, nonce, 'LATER', '0', -1, 1, {}) end

if unsafe_for() > 0 then return {'LATER', '0', unsafe_for(), 1} end

local message = ARGV[15]
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
-- F2: while the broker may deliver it again, that name is known.
if ARGV[18] ~= '' then redis.call('SET', P .. 'd:' .. ARGV[18], '1', 'PX', ARGV[12]) end

local limits, rank, lease = limits_of(ARGV[9]), tonumber(ARGV[8]), tonumber(ARGV[10])
local score = arrival(rank)
local function record()
  return 'task', ARGV[13], 'task_id', ARGV[14], 'queue', queue, 'score', score, 'rank', rank, 'limits', ARGV[9],
    'lease', lease, 'stalls', 0, 'max_stalls', ARGV[11], 'dedupe', ARGV[12], 'born', now, 'message', message,
    'recorded', ARGV[16]
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
