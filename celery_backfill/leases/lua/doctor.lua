#!lua
-- What the server lets this user's scripts do. Changes nothing; without flags, so that it is refused where a script
-- that writes would be (a replica, full memory, a disk that fails).
--
-- KEYS  1 namespace
-- ARGV  1... pairs: the words of a command up to its key, the key
-- Answer  {the server's run id or "", the number of a pair that is forbidden (from 0), ...}
local answer = {''}

local info = redis.pcall('INFO', 'server')
if type(info) == 'string' then answer[1] = string.match(info, 'run_id:(%x+)') or '' end

for i = 1, #ARGV, 2 do
  local command = {}
  for word in string.gmatch(ARGV[i], '%S+') do command[#command + 1] = word end
  command[#command + 1] = ARGV[i + 1]
  command[#command + 1] = ARGV[i + 1]    -- those that take many keys look at this one too
  local known, allowed = pcall(redis.acl_check_cmd, unpack(command))
  if not known or not allowed then answer[#answer + 1] = (i - 1) / 2 end
end
return answer
