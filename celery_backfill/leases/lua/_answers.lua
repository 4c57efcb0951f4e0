-- The answers of admit, claim and settle, kept under the nonce of the call.

-- Whether one of these queues has something that may run now: 1 or 0.
local function runnable(queues)
  for _, queue in ipairs(queues) do
    if redis.call('EXISTS', P .. 't:' .. queue) == 1 then return 1 end
  end
  return 0
end

-- The answer of admit, claim and settle, where a grant is six values: attempt, token, task, stalls, message, lease.
-- A grant that is no longer that token's is left out: a repeat tells what still holds.
local function answer(status, token, due, more, grants)
  local whole = {status, token, due, more}
  for i = 1, #grants, 2 do
    local record = redis.call('HMGET', P .. 'a:' .. grants[i], 'token', 'task', 'stalls', 'message', 'lease')
    if record[1] == grants[i + 1] then
      for _, value in ipairs({grants[i], grants[i + 1], record[2], record[3], record[4], record[5]}) do
        whole[#whole + 1] = value
      end
    end
  end
  return whole
end

-- Answer, and keep the answer in short under the call's nonce (F1). A worker may send two calls in one go, so the last
-- two are kept. Nothing in a status or a token needs JSON; only grants do.
local function conclude(worker, nonce, status, token, due, more, grants)
  local short = grants[1] and cjson.encode(grants) or ''
  local place = nonce % 2
  redis.call('HSET', P .. 'r:' .. worker, 'n' .. place, nonce,
    'answer' .. place, status .. ' ' .. token .. ' ' .. more .. ' ' .. short)
  return answer(status, token, due, more, grants)
end

local function kept_answer(text)
  local status, token, more, short = string.match(text, '^(%u+) (%d+) (%d+) (.*)$')
  return answer(status, token, next_due(), tonumber(more), short ~= '' and cjson.decode(short) or {})
end

-- A call that was already answered gets that answer; one older than the last answered changes nothing. Otherwise nil,
-- and whether the call just before it granted something.
local function answered(worker, nonce)
  local place = nonce % 2
  local kept = redis.call('HMGET', P .. 'r:' .. worker,
    'n' .. place, 'answer' .. place, 'n' .. 1 - place, 'answer' .. 1 - place)
  if kept[1] == nonce then return kept_answer(kept[2]) end
  local newest = math.max(tonumber(kept[1] or '0'), tonumber(kept[3] or '0'))
  if newest > tonumber(nonce) then return {'OLD', '0', -1, 0} end
  return nil, newest == nonce - 1 and kept[4] and string.sub(kept[4], -1) == ']'
end
