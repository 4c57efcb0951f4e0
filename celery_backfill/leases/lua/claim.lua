#!lua flags=allow-oom
--include common
--include answers
--include hand_on
-- A worker with free slots asks for attempts of its queues that may run now.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 epoch  3 worker  4 nonce  5 how many  6... its queues
-- Answer  {CLAIMED, "0", next due, runnable, attempt, token, task, stalls, message, lease, ...} | {OLD, ...}
local worker, nonce = ARGV[3], ARGV[4]

if another_epoch then return ANOTHER_EPOCH end
local repeated = answered(worker, nonce)
if repeated then return repeated end

local queues = {}
for i = 6, #ARGV do queues[#queues + 1] = ARGV[i] end
local grants, due = hand_on(worker, nonce, tonumber(ARGV[5]), queues)
return conclude(worker, nonce, 'CLAIMED', '0', due, runnable(queues), grants)
