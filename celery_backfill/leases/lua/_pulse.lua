-- F24: while nobody renewed or swept for longer than `threshold`, it was the store or the way to it that was away (or
-- its clock that jumped), not every owner. When the last such gap ended, in ms; 0 for never.
local function pulse(threshold)
  local seen = redis.call('HMGET', P .. 'pulse', 'at', 'gap')
  local gap = tonumber(seen[2] or '0')
  if threshold > 0 and seen[1] and now - seen[1] >= threshold then gap = now end
  redis.call('HSET', P .. 'pulse', 'at', now, 'gap', gap)
  return gap
end
