-- claim(model, worker, lease in ms) -> {id, attempt, request}, or nil if nothing waits
local model, worker, lease_ms = ARGV[2], ARGV[3], ARGV[4]
allow_when_full()

local id = next_waiting(model)
if not id then
  return nil
end
local attempt = start(id, worker, lease_ms)
return { id, attempt, redis.call('HGET', JOB .. id, 'request') }
