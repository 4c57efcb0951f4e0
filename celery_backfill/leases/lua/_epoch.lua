-- What greet, adopt and join know of epochs.

-- A caller that has joined an epoch this store never knew: the data were lost, and others may hold leases that are
-- unknown here. So nothing new starts until they have either adopted them or run out of them.
local function note_loss(joined, grace)
  local known = redis.call('HMGET', P .. 'epoch', 'id', 'before', 'born', 'soon', 'safe_at')
  if known[1] and joined ~= '' and joined ~= known[1] and joined ~= known[2] then
    local soon = math.max(tonumber(known[4]), known[3] + grace)
    redis.call('HSET', P .. 'epoch', 'soon', string.format('%.0f', soon),
      'safe_at', string.format('%.0f', math.max(tonumber(known[5]), soon)))
  end
end
