-- What every script begins with: the clock, tickets, and a job's life. Each change of a job's state
-- is one function here; the scripts only decide which of them happens. The names in capitals are
-- declared in front of this file by scripts.py. Times are integer milliseconds by Redis's clock.

-- ARGV[1] is always the clock's offset in ms: tests move time with it, otherwise it is 0.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
end

-- A full Redis refuses the first write of a script, and none that follow one it let through.
-- Deleting is always let through, so this lets a script finish: a full Redis takes no new jobs, but
-- running ones keep their leases and end, which is what frees memory again.
local function allow_when_full()
  redis.call('DEL', NOTHING)
end

---- Tickets -------------------------------------------------------------------------------------

-- Leaves a ticket unless enough of them stand. Returns whether it did.
local function push_ticket(model)
  local standing = redis.call('LLEN', QUEUE .. model)
  if standing >= TICKETS_MAX or standing >= redis.call('ZCARD', WAITING .. model) then
    return false
  end
  local blanks = { model = model, id = 'ticket-' .. redis.call('INCR', TICKETS) }
  local ticket = TICKET:gsub('{{(%w+)}}', blanks)
  redis.call('LPUSH', QUEUE .. model, ticket) -- kombu takes from the right
  return true
end

---- A job's life --------------------------------------------------------------------------------

-- Puts a queued job among the waiting, with a ticket. The score is its age, so a job that comes
-- back stands where it stood. Priority and fair share will go here: into this score, and into
-- `next_waiting`, which takes the lowest.
local function wait_in_line(id)
  local job = redis.call('HMGET', JOB .. id, 'model', 'sequence')
  local model, sequence = job[1], job[2]
  redis.call('ZADD', WAITING .. model, sequence, id)
  redis.call('SADD', MODELS, model)
  push_ticket(model)
end

-- Takes the next queued job out of the line; nil if none waits. Ids without a record are dropped.
local function next_waiting(model)
  while true do
    local id = redis.call('ZPOPMIN', WAITING .. model)[1]
    if not id or redis.call('HGET', JOB .. id, 'status') == 'queued' then
      return id
    end
  end
end

-- Whether this attempt still owns the job. An expired lease does until somebody takes it back.
local function owns(id, attempt)
  local job = redis.call('HMGET', JOB .. id, 'status', 'attempt')
  return job[1] == 'running' and job[2] == attempt
end

-- (nothing) -> queued
local function create(id, model, request)
  redis.call('HSET', JOB .. id,
    'sequence', redis.call('INCR', SEQUENCE),
    'status', 'queued',
    'model', model,
    'request', request,
    'created_at', now(),
    'attempt', 0,
    'crashes', 0)
  wait_in_line(id)
end

-- queued -> running. The caller has taken it out of the line. Returns the attempt.
local function start(id, worker, lease_ms)
  local time = now()
  redis.call('HSET', JOB .. id, 'status', 'running', 'started_at', time, 'worker', worker)
  redis.call('ZADD', LEASES, time + lease_ms, id)
  return redis.call('HINCRBY', JOB .. id, 'attempt', 1)
end

-- running -> queued
local function requeue(id)
  redis.call('ZREM', LEASES, id)
  redis.call('HSET', JOB .. id, 'status', 'queued')
  redis.call('HDEL', JOB .. id, 'started_at', 'worker')
  wait_in_line(id)
end

-- running -> succeeded | failed, with more fields of the record as they come
local function finish(id, status, ttl_seconds, ...)
  redis.call('ZREM', LEASES, id)
  redis.call('HSET', JOB .. id, 'status', status, 'finished_at', now(), ...)
  redis.call('EXPIRE', JOB .. id, ttl_seconds)
end

---- Workers -------------------------------------------------------------------------------------

local function forget_worker(worker)
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', WORKER_INFO, worker)
end

