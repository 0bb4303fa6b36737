-- sweep(lock in ms, most jobs of a kind, most crashes, error of a job that crashed so often as JSON,
--       ttl in s) -> {requeued, exhausted, tickets}, or nil while another one's lock stands
local lock_ms, most, max_crashes = ARGV[2], ARGV[3], tonumber(ARGV[4])
local exhausted_error, ttl_seconds = ARGV[5], ARGV[6]
allow_when_full()

if not redis.call('SET', JANITOR, 'sweeping', 'NX', 'PX', lock_ms) then
  return nil
end
local time = now()
local requeued, exhausted, tickets = 0, 0, 0

-- Expired leases. What is left beyond the bound is the next sweep's.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', time, 'LIMIT', 0, most)) do
  if redis.call('HGET', JOB .. id, 'status') ~= 'running' then
    redis.call('ZREM', LEASES, id) -- only if somebody deleted a record by hand
  elseif redis.call('HINCRBY', JOB .. id, 'crashes', 1) >= max_crashes then
    finish(id, 'failed', ttl_seconds, 0, 'error', exhausted_error)
    exhausted = exhausted + 1
  else
    requeue(id, ttl_seconds)
    requeued = requeued + 1
  end
end

-- Tickets that were lost, or that a worker added later could take.
for _, model in ipairs(redis.call('SMEMBERS', MODELS)) do
  if redis.call('ZCARD', WAITING .. model) == 0 then
    redis.call('SREM', MODELS, model)
  end
  while push_ticket(model) do
    tickets = tickets + 1
  end
end

-- What has outlived its record in lists of jobs.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', ENDED, '-inf', time, 'LIMIT', 0, 8 * most)) do
  local key, id = member:match('^(%S*) (%S+)$')
  forget(id, key)
end

for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', time)) do
  forget_worker(worker)
end

return { requeued, exhausted, tickets }
