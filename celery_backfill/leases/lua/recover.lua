#!lua flags=allow-oom
--include common
-- Leases that ran out: back to their place in the line with one stall more; over the budget, dead as poison.
-- Only this script judges a deadline (F24): whoever settles or renews before it still holds the lease.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 how many at the most
-- Answer  {next due, attempt, task, worker, stalls, BACK | POISON, ...}
local recovered = {next_due()}

local function poison_letter(record, stalls)
  return cjson.encode({
    task_id = record[5], task = record[4], queue = record[3], worker = record[1], reason = 'poison',
    exception_type = 'WorkerLostError',
    exception_message = 'its worker was lost ' .. stalls .. ' times, more than max_stalls allows; last ' .. record[1],
  })
end

for _, attempt in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local record = redis.call('HMGET', P .. 'a:' .. attempt,
    'worker', 'limits', 'queue', 'task', 'task_id', 'score', 'max_stalls', 'token', 'recorded', 'dedupe')
  local limits, verdict = limits_of(record[2]), 'BACK'
  release(attempt, limits, record[1])
  local stalls = redis.call('HINCRBY', P .. 'a:' .. attempt, 'stalls', 1)
  if stalls > tonumber(record[7]) then
    verdict = 'POISON'
    if record[9] == '1' then to_outbox('failed', attempt, record[8], poison_letter(record, stalls)) end
    forget(attempt, record[10])
  else
    wait_in_line(attempt, record[3], limits, record[6])
  end
  for _, field in ipairs({attempt, record[4], record[1], tostring(stalls), verdict}) do
    recovered[#recovered + 1] = field
  end
end
return recovered
