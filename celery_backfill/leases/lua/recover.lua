#!lua flags=allow-oom
--include common
--include pulse
--include stall
-- Leases that ran out, and those of workers that are gone for sure: back to their place in the line with one stall more;
-- over the budget, dead as poison. Only this script judges a deadline (F24): whoever settles or renews before it still
-- holds the lease.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 epoch  3 how many at the most  4 ms of silence that make a gap (0: no such rule)  5 host
--       6 seconds to keep what is known of a worker  7... workers of that host that a witness found gone (F25)
-- Answer  {next due, {worker, identity, ...} of that host, {attempt, task, worker, stalls, BACK | POISON, ...}}
if another_epoch then return ANOTHER_EPOCH end
local gap, host, recovered = pulse(tonumber(ARGV[4])), P .. 'n:' .. ARGV[5], {}

local function letter(record)
  if record[8] ~= '1' then return '' end
  return cjson.encode({
    task_id = record[5], task = record[4], queue = record[3], worker = record[1], reason = 'poison',
    exception_type = 'WorkerLostError',
  })
end

local function take_back(attempt)
  local record = redis.call('HMGET', P .. 'a:' .. attempt,
    'worker', 'limits', 'queue', 'task', 'task_id', 'score', 'token', 'recorded', 'max_stalls', 'dedupe')
  local limits, verdict = limits_of(record[2]), 'BACK'
  release(attempt, limits, record[1])
  if stalled(attempt, record[1], record[9]) then
    wait_in_line(attempt, record[3], limits, record[6])
  else
    verdict = 'POISON'
    poison(attempt, record[7], letter(record))
  end
  for _, field in ipairs({attempt, record[4], record[1], redis.call('HGET', P .. 'a:' .. attempt, 'stalls'), verdict}) do
    recovered[#recovered + 1] = field
  end
  if verdict == 'POISON' then forget(attempt, record[10]) end
end

-- One that could not be renewed since a gap has its whole length again, from the end of the gap.
local function has_grace(attempt)
  if gap == 0 then return false end
  local lease = tonumber(redis.call('HGET', P .. 'a:' .. attempt, 'lease'))
  if now >= gap + lease then return false end
  redis.call('ZADD', P .. 'leases', gap + lease, attempt)
  return true
end

for i = 7, #ARGV do
  for _, attempt in ipairs(redis.call('HKEYS', P .. 'w:' .. ARGV[i])) do take_back(attempt) end
  redis.call('HDEL', host, ARGV[i])
  redis.call('ZREM', P .. 'workers', ARGV[i])
  redis.call('SREM', P .. 'awaited', ARGV[i])
  -- What it still asked for is handed on to nobody.
  redis.call('DEL', P .. 'k:' .. ARGV[i])
end

local out = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, ARGV[3])
for _, attempt in ipairs(out) do
  if not has_grace(attempt) then take_back(attempt) end
end

redis.call('EXPIRE', host, ARGV[6])
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', now - ARGV[6] * 1000)
return {next_due(), redis.call('HGETALL', host), recovered}
