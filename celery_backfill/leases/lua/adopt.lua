#!lua flags=allow-oom
--include common
--include epoch
-- An owner brings a lease that it holds, with the whole record, into an epoch that may not know of it (F26). The highest
-- token wins: what is stored of an earlier time gives way, what is of a later time stays, and so does what has ended.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 the epoch that is to adopt it  3 worker  4 the epoch it had joined before
--       5 ms that a lease lasts at the longest  6 attempt  7 token  8 queue  9 priority rank  10 limits  11 lease ms
--       12 max stalls  13 ms to remember it  14 task  15 task id  16 message
--       17 "1" if its final failure is to be recorded  18 stalls
-- Answer  1 kept | 0 refused: the lease is lost
if another_epoch then return ANOTHER_EPOCH end
local worker, attempt, token = ARGV[3], ARGV[6], ARGV[7]
note_loss(ARGV[4], tonumber(ARGV[5]))
if redis.call('EXISTS', P .. 'd:' .. attempt) == 1 then return 0 end

local stored = redis.call('HMGET', P .. 'a:' .. attempt, 'token', 'last', 'worker', 'limits', 'queue', 'state', 'score')
if stored[1] == token then
  redis.call('ZADD', P .. 'leases', now + ARGV[11], attempt)
  return 1
end
if stored[1] then
  if tonumber(stored[2] or '0') >= tonumber(token) then return 0 end
  if stored[6] == 'running' then
    release(attempt, limits_of(stored[4]), stored[3])
  elseif stored[6] == 'scheduled' then
    redis.call('ZREM', P .. 'sched', attempt)
  else
    local key = line_key(limits_of(stored[4]))
    redis.call('ZREM', line(stored[5], key), attempt)
    refresh(stored[5], key)
  end
elseif tonumber(redis.call('GET', P .. 'token') or '0') >= tonumber(token) then
  -- This store has granted it, or something later, and does not have it any more: it has ended here.
  return 0
end

local limits, rank = limits_of(ARGV[10]), tonumber(ARGV[9])
redis.call('HSET', P .. 'epoch', 'adopted', string.format('%.0f', math.max(tonumber(epoch[3] or '0'), tonumber(token))))
redis.call('HSET', P .. 'a:' .. attempt, 'state', 'running', 'token', token, 'last', token, 'worker', worker,
  'granted', now, 'queue', ARGV[8], 'rank', rank, 'limits', ARGV[10], 'lease', ARGV[11], 'max_stalls', ARGV[12],
  'dedupe', ARGV[13], 'task', ARGV[14], 'task_id', ARGV[15], 'message', ARGV[16], 'recorded', ARGV[17],
  'stalls', ARGV[18], 'score', stored[7] or arrival(rank), 'born', now)
redis.call('ZADD', P .. 'leases', now + ARGV[11], attempt)
redis.call('HSET', P .. 'w:' .. worker, attempt, token .. ':0')
for _, limit in ipairs(limits) do
  redis.call('SADD', P .. 'h:' .. limit[1], attempt)
  refresh_key(limit[1])
end
return 1
