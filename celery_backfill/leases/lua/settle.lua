#!lua flags=allow-oom
--include common
--include answers
--include hand_on
--include stall
-- The end of a token's run: release its permits, write what is final to the outbox, and hand this worker what it may
-- run next, all in one step. A wrong token changes nothing and is told so.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 epoch  3 worker  4 nonce  5 attempt  6 token
--       7 outcome: done | retry | dead | stalled | back (given back: it never started)
--       8 retry: delay ms  9 retry: message or "" for the same  10 retry: limits  11 retry: queue or "" for the same
--       12 letter (JSON): of dead and of a stalled one over its budget; of done: what it resolves; "" for none
--       13 how many attempts this worker wants next (nothing is handed on with back)  14... its queues
-- Answer  {SETTLED | STALE | POISON, "0", next due, runnable, attempt, token, task, stalls, message, lease, ...} | {OLD, ...}
local worker, nonce, attempt, token, outcome = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

if another_epoch then return ANOTHER_EPOCH end
local repeated = answered(worker, nonce)
if repeated then return repeated end

local record = redis.call('HMGET', P .. 'a:' .. attempt,
  'token', 'worker', 'limits', 'queue', 'score', 'rank', 'max_stalls', 'dedupe')
local status = 'SETTLED'
if record[1] ~= token then
  status = 'STALE'
else
  local limits = limits_of(record[3])
  release(attempt, limits, record[2])
  if outcome == 'stalled' then
    if stalled(attempt, worker, record[7]) then
      wait_in_line(attempt, record[4], limits, record[5])
    else
      status = 'POISON'
      poison(attempt, token, ARGV[12])
      forget(attempt, record[8])
    end
  elseif outcome == 'back' then
    wait_in_line(attempt, record[4], limits, record[5])
  elseif outcome == 'retry' then
    local next_queue = ARGV[11] ~= '' and ARGV[11] or record[4]
    redis.call('HSET', P .. 'a:' .. attempt, 'queue', next_queue, 'limits', ARGV[10])
    if ARGV[9] ~= '' then redis.call('HSET', P .. 'a:' .. attempt, 'message', ARGV[9]) end
    if tonumber(ARGV[8]) > 0 then
      redis.call('HSET', P .. 'a:' .. attempt, 'state', 'scheduled', 'token', '')
      redis.call('ZADD', P .. 'sched', now + tonumber(ARGV[8]), attempt)
    else
      wait_in_line(attempt, next_queue, limits_of(ARGV[10]), arrival(tonumber(record[6])))
    end
  end
  if outcome == 'done' or outcome == 'dead' then
    if ARGV[12] ~= '' then
      to_outbox(outcome == 'dead' and 'failed' or 'resolved', attempt, token, ARGV[12])
    end
    forget(attempt, record[8])
  end
end

-- F12: who gives back is leaving, or would be handed the same again.
local want, queues = outcome == 'back' and 0 or tonumber(ARGV[13]), {}
for i = 14, #ARGV do queues[#queues + 1] = ARGV[i] end
local grants, due = hand_on(worker, nonce, want, queues)
return conclude(worker, nonce, status, '0', due, runnable(queues), grants)
