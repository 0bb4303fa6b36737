-- sweep(lock in ms, lease in ms, most of a kind, most crashes, error of a job that crashed so often as
--       JSON)
-- -> {requeued, exhausted, tickets, models of jobs that failed, models of rows that failed}, or nil while
-- another one's lock stands
local FREED_MOST = 5000 -- entries, of what was put aside
local lock_ms, lease_ms, most, max_crashes = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local exhausted_error = ARGV[6]
local QUIET_AT_MS = 3000 -- without a sweep, if leases are so short
allow_when_full()

if not redis.call('SET', JANITOR, 'sweeping', 'NX', 'PX', lock_ms) then
  return nil
end
local time = now()
local requeued, exhausted, tickets = 0, 0, 0
local failed_jobs, failed_rows = {}, {}

-- Where nobody has swept for long, Redis may have been away, and nobody could extend a lease either:
-- for the length of one none is taken back. By Redis's own clock, which tests do not move.
local clock = redis.call('TIME')
local swept_at = clock[1] * 1000 + math.floor(clock[2] / 1000)
local before = redis.call('GET', SWEPT_AT)
if before and swept_at - before > math.max(lease_ms / 2, QUIET_AT_MS) then
  redis.call('SET', QUIET, 'let leases be', 'PX', lease_ms)
end
redis.call('SET', SWEPT_AT, swept_at)
local overdue = redis.call('EXISTS', QUIET) == 1 and {}
  or redis.call('ZRANGEBYSCORE', LEASES, '-inf', time, 'LIMIT', 0, most)

-- Expired leases. What is left beyond the bound is the next sweep's.
for _, id in ipairs(overdue) do
  local batch, row = row_of(id)
  local running
  if batch then
    running = lease_of(batch, row)
  else
    running = redis.call('HGET', JOB .. id, 'status') == 'running'
  end
  if not running then
    redis.call('ZREM', LEASES, id) -- only if somebody deleted a record by hand
  elseif count_crash(id, max_crashes, exhausted_error) then
    exhausted = exhausted + 1
    if batch then
      failed_rows[#failed_rows + 1] = redis.call('HGET', BATCH .. batch, 'model')
    else
      failed_jobs[#failed_jobs + 1] = redis.call('HGET', JOB .. id, 'model')
    end
  else
    requeued = requeued + 1
  end
end

-- Jobs that were not started in time.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', QUEUE_DEADLINES, '-inf', time, 'LIMIT', 0, most)) do
  if redis.call('HGET', JOB .. id, 'status') ~= 'queued' then
    redis.call('ZREM', QUEUE_DEADLINES, id) -- only if somebody deleted a record by hand
  else
    expire_job(id)
  end
end

-- Uploads that fell silent, and completion windows that have closed.
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', UPLOADS, '-inf', time, 'LIMIT', 0, most)) do
  abandon_batch(batch)
end
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', WINDOWS, '-inf', time, 'LIMIT', 0, most)) do
  stop_batch(batch, 'expired')
end

-- Tickets that were lost, or that a worker added later could take.
for _, model in ipairs(redis.call('SMEMBERS', MODELS)) do
  if tickets_wanted(model) == 0 then
    redis.call('SREM', MODELS, model)
  end
  while push_ticket(model) do
    tickets = tickets + 1
  end
end

free_discarded(FREED_MOST)

-- What has outlived its record in lists of jobs and batches.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', ENDED, '-inf', time, 'LIMIT', 0, 8 * most)) do
  local key, id = member:match('^(%S*) (%S+)$')
  forget(id, key)
end

for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', time)) do
  forget_worker(worker)
end

return { requeued, exhausted, tickets, failed_jobs, failed_rows }
