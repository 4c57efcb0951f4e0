#!lua
-- The whole namespace as JSON.
--
-- KEYS  1 namespace
-- Answer  {name: [type, [...]]}: hash and zset as pairs, set as members, string as value and whether it expires,
--         stream as a list of pairs for each entry
local P = KEYS[1]
local readers = {
  hash = function(key) return redis.call('HGETALL', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  string = function(key) return {redis.call('GET', key), redis.call('PTTL', key) > 0 and '1' or ''} end,
  stream = function(key)
    local entries = {}
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do entries[#entries + 1] = entry[2] end
    return entries
  end,
}
local whole = {}
for _, key in ipairs(redis.call('KEYS', P .. '*')) do
  local kind = redis.call('TYPE', key).ok
  whole[string.sub(key, #P + 1)] = {kind, readers[kind](key)}
end
return next(whole) and cjson.encode(whole) or '{}'
