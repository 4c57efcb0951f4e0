-- What every script shares: the layout of the store, the clock, limits, lines, leases.
--
-- KEYS[1]  the namespace with its hash tag, "{backfill}:"; every key of the store begins with it
-- ARGV[1]  the time in milliseconds, for tests; "" for the server's own clock
-- ARGV[2]  the epoch that the caller has joined; "" for who holds no lease (tools)
--
-- Under the namespace:
--   a:<attempt>         hash    the record of an attempt that is not settled
--   leases              zset    running attempts by deadline (ms)
--   h:<key>             set     permits of a key, each an attempt that runs
--   l:<n>:<queue>:<key> zset    the line of a key in a queue (n = length of queue), by priority, then arrival;
--                               the line of key "" holds what waits without a limit
--   kq:<key>            set     the queues in which the key has a line
--   b                   set     the keys that have a line
--   t:<queue>           zset    the keys whose head may run now, by turn
--   sched               zset    scheduled attempts by due time (ms)
--   w:<worker>          hash    attempt -> "token:nonce" of all leases of a worker
--   r:<worker>          hash    the last two answers given to a worker, by nonce
--   k:<worker>          set     the tasks a worker knows
--   workers             zset    workers by their last renewal (ms)
--   n:<host>            hash    worker -> identity of the workers of a host, for witnesses
--   epoch               hash    id, the server's run id, the id before, when it began, when new work is safe (ms), the
--                               highest token adopted
--   awaited             set     workers that were alive before the epoch began and have not joined it yet
--   pulse               hash    when anybody last renewed or swept, and when the last gap in that ended (ms)
--   d:<attempt>         string  settled, while its broker may deliver it again
--   outbox              stream  final failures and resolutions, on their way to PostgreSQL
--   endings             stream  ends decided here, whose Celery side (result, errbacks, chord) is still to be done
--   seq, token          string  the counters of arrivals and of fencing tokens
local P = KEYS[1]

local micros
if ARGV[1] == '' then
  local time = redis.call('TIME')
  micros = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  micros = tonumber(ARGV[1]) * 1000
end
local now = math.floor(micros / 1000)

-- The epoch changes when the server was restarted and when its data are gone (F26). Who calls from another epoch has to
-- join again first, since its leases may be unknown here.
local epoch = redis.call('HMGET', P .. 'epoch', 'id', 'safe_at', 'adopted')
local another_epoch = ARGV[2] ~= '' and ARGV[2] ~= epoch[1]
local ANOTHER_EPOCH = redis.error_reply('EPOCH the store was restarted or has lost its data: join again')

-- In how many milliseconds something new may start: owners of leases come first.
local function unsafe_for()
  return epoch[2] and math.max(0, tonumber(epoch[2]) - now) or 0
end

local RANK = 1e13    -- a score is priority rank * RANK + arrival

-- F26: grows across a loss of the counter as well, since the clock went on.
local function next_token()
  local last = tonumber(redis.call('GET', P .. 'token') or '0')
  local token = string.format('%.0f', math.max(last + 1, tonumber(epoch[3] or '0') + 1, micros))
  redis.call('SET', P .. 'token', token)
  return token
end

local function arrival(rank)
  return string.format('%.0f', rank * RANK + redis.call('INCR', P .. 'seq'))
end

-- limits: a JSON array of [key, capacity], or "" for none.
local function limits_of(text)
  if not text or text == '' then return {} end
  return cjson.decode(text)
end

local function full(limits)
  for _, limit in ipairs(limits) do
    if redis.call('SCARD', P .. 'h:' .. limit[1]) >= limit[2] then return true end
  end
  return false
end

-- An attempt waits in the line of its first limit.
local function line_key(limits)
  return limits[1] and limits[1][1] or ''
end

local function line(queue, key)
  return P .. 'l:' .. #queue .. ':' .. queue .. ':' .. key
end

-- Keep the turn list true for one line: it names the key if and only if the head of the line may run now.
local function refresh(queue, key)
  local head = redis.call('ZRANGE', line(queue, key), 0, 0)[1]
  if not head then
    redis.call('ZREM', P .. 't:' .. queue, key)
    redis.call('SREM', P .. 'kq:' .. key, queue)
    if redis.call('EXISTS', P .. 'kq:' .. key) == 0 then redis.call('SREM', P .. 'b', key) end
  elseif full(limits_of(redis.call('HGET', P .. 'a:' .. head, 'limits'))) then
    redis.call('ZREM', P .. 't:' .. queue, key)
  elseif not redis.call('ZSCORE', P .. 't:' .. queue, key) then
    redis.call('ZADD', P .. 't:' .. queue, redis.call('INCR', P .. 'seq'), key)
  end
end

local function refresh_key(key)
  local queues = redis.call('SMEMBERS', P .. 'kq:' .. key)
  for _, queue in ipairs(queues) do refresh(queue, key) end
end

local function wait_in_line(attempt, queue, limits, score)
  local key = line_key(limits)
  redis.call('HSET', P .. 'a:' .. attempt, 'state', 'blocked', 'score', score, 'token', '')
  redis.call('ZADD', line(queue, key), score, attempt)
  redis.call('SADD', P .. 'kq:' .. key, queue)
  redis.call('SADD', P .. 'b', key)
  refresh(queue, key)
end

-- Lease an attempt to a worker, with permits of all its limits. Further fields of its record may come with it.
local function grant(attempt, limits, worker, nonce, lease, ...)
  local token = next_token()
  redis.call('ZADD', P .. 'leases', now + lease, attempt)
  redis.call('HSET', P .. 'w:' .. worker, attempt, token .. ':' .. nonce)
  redis.call('HSET', P .. 'a:' .. attempt,
    'state', 'running', 'token', token, 'last', token, 'worker', worker, 'granted', now, ...)
  for _, limit in ipairs(limits) do
    redis.call('SADD', P .. 'h:' .. limit[1], attempt)
    refresh_key(limit[1])
  end
  return token
end

-- Take a lease and its permits away. A permit is a set's member: giving it back twice does no harm. The record stays,
-- without a token, unless it is deleted by whoever calls.
local function release(attempt, limits, worker)
  redis.call('ZREM', P .. 'leases', attempt)
  redis.call('HDEL', P .. 'w:' .. worker, attempt)
  for _, limit in ipairs(limits) do
    redis.call('SREM', P .. 'h:' .. limit[1], attempt)
    refresh_key(limit[1])
  end
end

-- Forget an attempt that ended; remember its id while its broker may deliver it again (F3).
local function forget(attempt, dedupe)
  redis.call('DEL', P .. 'a:' .. attempt)
  if dedupe ~= '0' then redis.call('SET', P .. 'd:' .. attempt, '1', 'PX', dedupe) end
end

-- A letter for PostgreSQL; its id names the run that ended, so that shipping it twice is one.
local function to_outbox(kind, attempt, token, letter)
  local record = redis.call('HMGET', P .. 'a:' .. attempt, 'message', 'stalls', 'queue')
  redis.call('XADD', P .. 'outbox', '*', 'kind', kind, 'id', attempt .. ':' .. token, 'at', string.format('%.0f', now),
    'message', record[1] or '', 'stalls', record[2] or '0', 'queue', record[3] or '', 'letter', letter)
end

-- In how many milliseconds something scheduled is due next, or -1.
local function next_due()
  local first = redis.call('ZRANGE', P .. 'sched', 0, 0, 'WITHSCORES')
  return first[2] and math.max(0, tonumber(first[2]) - now) or -1
end
