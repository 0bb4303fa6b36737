-- heartbeat(worker, its info as JSON, lease in ms, id, attempt, id, attempt, ...)
-- -> {lost ids, ids that a client wants to end}
local worker, info, lease_ms = ARGV[2], ARGV[3], ARGV[4]
allow_when_full()

local expiry = now() + lease_ms
redis.call('ZADD', WORKERS, expiry, worker)
redis.call('HSET', WORKER_INFO, worker, info)

local lost, cancelled = {}, {}
for i = 5, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  if owns(id, attempt) then
    redis.call('ZADD', LEASES, expiry, id)
    if is_cancelled(id) then
      cancelled[#cancelled + 1] = id
    end
  else
    lost[#lost + 1] = id
  end
end
return { lost, cancelled }
