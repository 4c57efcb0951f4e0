-- Leases that ended without a word of how: stalls, and poison.

-- Count a stall, and on which worker; whether it may run again.
local function stalled(attempt, worker, max_stalls)
  local before = redis.call('HGET', P .. 'a:' .. attempt, 'lost_on')
  local name = string.match(worker, '^(.*)/%x+$') or worker
  redis.call('HSET', P .. 'a:' .. attempt, 'lost_on', before and before .. ', ' .. name or name)
  return redis.call('HINCRBY', P .. 'a:' .. attempt, 'stalls', 1) <= tonumber(max_stalls)
end

-- Too many stalls: a letter, if there is to be one, and the Celery side for a worker to do (F17).
local function poison(attempt, token, letter)
  local record = redis.call('HMGET', P .. 'a:' .. attempt, 'stalls', 'max_stalls', 'lost_on', 'task', 'task_id', 'message')
  local text = 'its worker or pool process was lost ' .. record[1] .. ' times, more than max_stalls=' .. record[2]
    .. ' allows; on ' .. record[3]
  if letter ~= '' then
    local readable, fields = pcall(cjson.decode, letter)
    if readable then
      fields.exception_message = fields.exception_message and text .. ': ' .. fields.exception_message or text
      letter = cjson.encode(fields)
    end
    to_outbox('failed', attempt, token, letter)
  end
  redis.call('XADD', P .. 'endings', '*', 'kind', 'poison', 'attempt', attempt, 'token', token,
    'task', record[4], 'task_id', record[5], 'message', record[6], 'text', text)
end
