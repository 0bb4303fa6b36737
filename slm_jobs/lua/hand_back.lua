-- hand_back(ttl of a job in s, ttl of a batch in s, id, attempt, id, attempt, ...)
-- -> how many went back; stale ones are left alone
local ttl_seconds, batch_ttl_seconds = ARGV[2], ARGV[3]
allow_when_full()

local returned = 0
for i = 4, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  if owns(id, attempt) then
    requeue(id, ttl_seconds, batch_ttl_seconds)
    returned = returned + 1
  end
end
return returned
