#!lua flags=allow-oom
--include common
--include answers
--include hand_on
-- A worker with free slots asks for attempts of its queues that may run now.
--
-- KEYS  1 namespace
-- ARGV  1 time  2 worker  3 nonce  4 how many  5... its queues
-- Answer  {CLAIMED, "0", next due, runnable, attempt, token, task, stalls, message, ...} | {OLD, ...}
local worker, nonce = ARGV[2], ARGV[3]

local repeated = answered(worker, nonce)
if repeated then return repeated end

local queues = {}
for i = 5, #ARGV do queues[#queues + 1] = ARGV[i] end
local grants, due = hand_on(worker, nonce, tonumber(ARGV[4]), queues)
return conclude(worker, nonce, 'CLAIMED', '0', due, runnable(queues), grants)
