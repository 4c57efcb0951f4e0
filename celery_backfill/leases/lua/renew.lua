#!lua flags=allow-oom
--include common
--include pulse
-- All leases of a worker at once, each by its token. A lease that the worker was granted in a call whose answer it has
-- moved past, and that it does not name, is one it never heard of: given back, with no stall (F1).
--
-- KEYS  1 namespace
-- ARGV  1 time  2 epoch  3 worker  4 the last nonce answered  5 seconds to keep what is known of an idle worker
--       6 ms of silence that make a gap (0: no such rule)  7... attempt, token, attempt, token, ...
-- Answer  {1 if the worker's tasks are known | 0, lost attempt, lost attempt, ...}
local worker, last = ARGV[3], tonumber(ARGV[4])
local named, lost = {}, {}
if another_epoch then return ANOTHER_EPOCH end
pulse(tonumber(ARGV[6]))

for i = 7, #ARGV, 2 do
  local attempt, token = ARGV[i], ARGV[i + 1]
  named[attempt] = token
  local record = redis.call('HMGET', P .. 'a:' .. attempt, 'token', 'lease')
  if record[1] == token then
    redis.call('ZADD', P .. 'leases', now + tonumber(record[2]), attempt)
  else
    lost[#lost + 1] = attempt
  end
end

local held = redis.call('HGETALL', P .. 'w:' .. worker)
for i = 1, #held, 2 do
  local attempt, token, nonce = held[i], string.match(held[i + 1], '^(%d+):(%d+)$')
  if named[attempt] ~= token and tonumber(nonce) <= last then
    local record = redis.call('HMGET', P .. 'a:' .. attempt, 'limits', 'queue', 'score')
    local limits = limits_of(record[1])
    release(attempt, limits, worker)
    wait_in_line(attempt, record[2], limits, record[3])
  end
end

redis.call('EXPIRE', P .. 'r:' .. worker, ARGV[5])
local known = redis.call('EXPIRE', P .. 'k:' .. worker, ARGV[5])
if known == 1 then redis.call('ZADD', P .. 'workers', now, worker) end
table.insert(lost, 1, known)
return lost
