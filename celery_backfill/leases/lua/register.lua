#!lua
--include common
-- What tasks a worker knows, so that it is handed nothing else (F10).
--
-- KEYS  1 namespace
-- ARGV  1 time  2 worker  3 seconds to keep it without a renewal  4... task names
-- Answer  1
local known = P .. 'k:' .. ARGV[2]
redis.call('DEL', known)
for i = 4, #ARGV do redis.call('SADD', known, ARGV[i]) end
redis.call('EXPIRE', known, ARGV[3])
-- Its answers are to go with it, even if it dies before its first renewal.
redis.call('HSETNX', P .. 'r:' .. ARGV[2], 'n0', '0')
redis.call('EXPIRE', P .. 'r:' .. ARGV[2], ARGV[3])
return 1
