#!lua flags=allow-oom
--include common
-- A worker has stopped and holds no lease: nobody waits for it any more.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 epoch  3 worker  4 host or ""
-- Answer  1
local worker = ARGV[3]
redis.call('ZREM', P .. 'workers', worker)
redis.call('SREM', P .. 'awaited', worker)
redis.call('HDEL', P .. 'n:' .. ARGV[4], worker)
redis.call('DEL', P .. 'k:' .. worker)
-- Its answers stay while what it asked may still be on its way.
redis.call('EXPIRE', P .. 'r:' .. worker, 60)
return 1
