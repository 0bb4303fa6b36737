-- cancel(id) -> the record; nil if there is no such job
-- A queued job ends here; the worker of a running one is told. An ended one stays as it is.
local id = ARGV[2]
allow_when_full()

local job = redis.call('HMGET', JOB .. id, 'status', 'worker', 'attempt')
if job[1] == 'queued' then
  finish(id, 'cancelled', 0)
elseif job[1] == 'running' then
  redis.call('HSET', JOB .. id, 'cancel_requested', 1)
  redis.call('PUBLISH', COMMANDS .. job[2], id .. ' ' .. job[3])
end
return job[1] and record(id)
