#!lua flags=allow-oom
--include common
-- The first call on a new connection: a server that restarted, or that has no epoch (it is new, or its data are gone),
-- begins another one (F26). Nothing new starts in it before those who may hold leases have joined it.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 ""  3 ms that a lease lasts at the longest  4 ms that a live worker needs to notice and join again
--       5 run id and 6 seconds of uptime, for tests; "" for the server's own
-- Answer  the epoch
local grace, soon, run, uptime = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
if run == '' then
  local info = redis.pcall('INFO', 'server')
  info = type(info) == 'string' and info or ''
  run = string.match(info, 'run_id:(%x+)') or 'unknown'
  uptime = string.match(info, 'uptime_in_seconds:(%d+)') or '0'
end

local known = redis.call('HMGET', P .. 'epoch', 'id', 'run', 'soon')
if known[1] and known[2] == run then return known[1] end

local id = string.format('%.0f', math.max(tonumber(known[1] or '0') + 1, micros))
-- Owners whom an earlier loss keeps waiting for are waited for as long as then.
soon = math.max(now + soon, tonumber(known[3] or '0'))
local safe_at = soon
if known[1] then
  local alive_since = (redis.call('HGET', P .. 'pulse', 'at') or now) - grace
  redis.call('DEL', P .. 'awaited')
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', alive_since, '+inf')) do
    redis.call('SADD', P .. 'awaited', worker)
    safe_at = math.max(soon, now + grace)
  end
elseif tonumber(uptime) * 1000 >= grace then
  -- The server did not lose this namespace by a restart within a lease: it is new here.
  safe_at = 0
end
redis.call('HSET', P .. 'epoch', 'id', id, 'run', run, 'before', known[1] or '', 'born', now,
  'soon', string.format('%.0f', soon), 'safe_at', string.format('%.0f', safe_at))
return id
