#!lua
-- Replace the whole namespace by what a dump has; a stream is left out.
--
-- KEYS  1 namespace
-- ARGV  1 the dump  2 for how many milliseconds a string that expires is kept
-- Answer  1
local P = KEYS[1]
local writers = {
  hash = function(key, pairs) redis.call('HSET', key, unpack(pairs)) end,
  zset = function(key, pairs)
    for i = 1, #pairs, 2 do redis.call('ZADD', key, pairs[i + 1], pairs[i]) end
  end,
  set = function(key, members) redis.call('SADD', key, unpack(members)) end,
  string = function(key, value)
    redis.call('SET', key, value[1])
    if value[2] ~= '' then redis.call('PEXPIRE', key, ARGV[2]) end
  end,
}
local found = redis.call('KEYS', P .. '*')
if #found > 0 then redis.call('DEL', unpack(found)) end
for name, entry in pairs(cjson.decode(ARGV[1])) do writers[entry[1]](P .. name, entry[2]) end
return 1
