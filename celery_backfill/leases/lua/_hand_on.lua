-- What may run next goes to a worker that wants it: for claim and settle.

local DUE_BATCH = 100
local LOOK_PAST = 100

-- Scheduled attempts that are due join their lines, as new arrivals (F12).
local function promote()
  local due = redis.call('ZRANGEBYSCORE', P .. 'sched', '-inf', now, 'LIMIT', 0, DUE_BATCH)
  for _, attempt in ipairs(due) do
    redis.call('ZREM', P .. 'sched', attempt)
    local record = redis.call('HMGET', P .. 'a:' .. attempt, 'queue', 'limits', 'rank')
    if record[1] then
      wait_in_line(attempt, record[1], limits_of(record[2]), arrival(tonumber(record[3])))
    end
  end
end

-- The first attempt of a line that this worker can run: what it does not know is passed over (F10).
local function first_known(worker, queue, key)
  for i = 0, LOOK_PAST - 1 do
    local attempt = redis.call('ZRANGE', line(queue, key), i, i)[1]
    if not attempt then return nil end
    local record = redis.call('HMGET', P .. 'a:' .. attempt, 'task', 'limits', 'lease')
    if redis.call('SISMEMBER', P .. 'k:' .. worker, record[1]) == 1 then
      local limits = limits_of(record[2])
      if full(limits) then return nil end
      return attempt, limits, tonumber(record[3])
    end
  end
end

-- Up to `want` attempts of these queues for a worker; the keys take turns. Also when something may be due next.
local function hand_on(worker, nonce, want, queues)
  local grants = {}
  local wait = unsafe_for()
  if wait > 0 then return grants, wait end
  local passed, looks = {}, 0
  local due = next_due()
  if due == 0 and want > 0 then
    promote()
    due = next_due()
  end
  while #grants < 2 * want and looks < want + LOOK_PAST do
    looks = looks + 1
    local queue, key, turn
    for _, candidate in ipairs(queues) do
      local at = passed[candidate] or 0
      local first = redis.call('ZRANGE', P .. 't:' .. candidate, at, at, 'WITHSCORES')
      if first[1] and (not turn or tonumber(first[2]) < turn) then
        queue, key, turn = candidate, first[1], tonumber(first[2])
      end
    end
    if not queue then break end
    local attempt, limits, lease = first_known(worker, queue, key)
    if attempt then
      redis.call('ZREM', line(queue, key), attempt)
      redis.call('ZREM', P .. 't:' .. queue, key)
      grants[#grants + 1] = attempt
      grants[#grants + 1] = grant(attempt, limits, worker, nonce, lease)
      refresh(queue, key)
    else
      passed[queue] = (passed[queue] or 0) + 1
    end
  end
  return grants, due
end

