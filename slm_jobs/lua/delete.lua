-- delete(id) -> 1, or 0 if the job has not ended; 1 also if there is none
local id = ARGV[2]
allow_when_full()

local job = redis.call('HMGET', JOB .. id, 'status', 'key')
if job[1] == 'queued' or job[1] == 'running' then
  return 0
end
forget_job(id, job[2] or '')
forget_deliveries(id)
return 1
