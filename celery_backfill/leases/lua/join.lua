#!lua
--include common
--include epoch
-- A worker joins the epoch: which tasks it knows, so that it is handed nothing else (F10), and who it is. It has adopted
-- its leases before. When all who are awaited have joined, new work is safe.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 the epoch in which its leases are adopted  3 worker  4 seconds to keep it without a renewal
--       5 the epoch it had joined before, or ""  6 ms that a lease lasts at the longest
--       7 host or ""  8 identity on it  9 the highest token it has seen  10... task names
-- Answer  ms until something new may start
if another_epoch then return ANOTHER_EPOCH end
local worker, known = ARGV[3], P .. 'k:' .. ARGV[3]
note_loss(ARGV[5], tonumber(ARGV[6]))
-- F26: tokens grow beyond what anybody has seen, also where the counter is gone and the clock went back.
if tonumber(ARGV[9]) > tonumber(epoch[3] or '0') then redis.call('HSET', P .. 'epoch', 'adopted', ARGV[9]) end
redis.call('DEL', known)
for i = 10, #ARGV do redis.call('SADD', known, ARGV[i]) end
redis.call('EXPIRE', known, ARGV[4])
-- Its answers are to go with it, even if it dies before its first renewal.
redis.call('HSETNX', P .. 'r:' .. worker, 'n0', '0')
redis.call('EXPIRE', P .. 'r:' .. worker, ARGV[4])
redis.call('ZADD', P .. 'workers', now, worker)
if ARGV[7] ~= '' then redis.call('HSET', P .. 'n:' .. ARGV[7], worker, ARGV[8]) end

if redis.call('SREM', P .. 'awaited', worker) == 1 and redis.call('EXISTS', P .. 'awaited') == 0 then
  redis.call('HSET', P .. 'epoch', 'safe_at', redis.call('HGET', P .. 'epoch', 'soon'))
end
local safe_at = redis.call('HGET', P .. 'epoch', 'safe_at')
return safe_at and math.max(0, tonumber(safe_at) - now) or 0
