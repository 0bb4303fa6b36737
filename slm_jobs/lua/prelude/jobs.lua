-- A job's life.

local PRIORITY_STEP = 1e13 -- more jobs than there will ever be

-- Tells who waits for a job or batch, or follows it, that something changed.
local function announce(id, what)
  redis.call('PUBLISH', EVENTS .. id, what)
end

-- Counts a job in among the queued ones (sign 1), or out (sign -1).
local function count_queued(id, sign)
  local job = redis.call('HMGET', JOB .. id, 'model', 'key', 'tokens')
  local tokens = sign * job[3] + 0 -- Redis knows no -0
  redis.call('HINCRBY', QUEUED_TOKENS, job[1], tokens)
  if job[2] ~= '' then
    redis.call('HINCRBY', USAGE .. job[2], 'queued_tokens', tokens)
  end
end

-- Puts a queued job among the waiting, with a ticket. The score is its priority, then its age, so a
-- job that comes back stands where it stood; or among the suspects, if it has crashed a worker.
local function wait_in_line(id)
  local job = redis.call('HMGET', JOB .. id, 'model', 'sequence', 'priority', 'crashes')
  local model, line = job[1], job[4] == '0' and WAITING or SUSPECTS
  redis.call('ZADD', line .. model, job[2] - job[3] * PRIORITY_STEP, id)
  redis.call('SADD', MODELS, model)
  count_queued(id, 1)
  push_ticket(model)
end

-- A job's record but for its request, whose texts may be long: one value for each of FIELDS.
local function record(id)
  return redis.call('HMGET', JOB .. id, unpack(FIELDS))
end

-- Where a job stands: {jobs ahead, jobs waiting, their tokens}; nothing if it is not queued.
local function place(id)
  local job = redis.call('HMGET', JOB .. id, 'status', 'model')
  if job[1] ~= 'queued' then
    return {}
  end
  local line = WAITING .. job[2]
  return {
    redis.call('ZRANK', line, id) or 0, -- a suspect goes before all
    math.max(redis.call('ZCARD', line), 1),
    tonumber(redis.call('HGET', QUEUED_TOKENS, job[2]) or 0),
  }
end

local function owns_job(id, attempt)
  local job = redis.call('HMGET', JOB .. id, 'status', 'attempt')
  return job[1] == 'running' and job[2] == attempt
end

-- (nothing) -> queued. `key` is '' for nobody's; `tokens` is what it may take at most; `about` is what
-- its record tells of the request. More fields of the record may follow.
local function create(id, key, model, priority, tokens, about, request, ...)
  local time, sequence = now(), redis.call('INCR', SEQUENCE)
  redis.call('HSET', JOB .. id,
    'sequence', sequence,
    'status', 'queued',
    'key', key,
    'model', model,
    'priority', priority,
    'tokens', tokens,
    'about', about,
    'request', request,
    'created_at', time,
    'attempt', 0,
    'crashes', 0,
    ...)
  local timeout_ms = redis.call('HGET', JOB .. id, 'queue_timeout_ms')
  if timeout_ms then
    redis.call('ZADD', QUEUE_DEADLINES, time + timeout_ms, id)
  end
  redis.call('ZADD', JOBS_OF .. key, time * 1000 + sequence % 1000, id)
  if key ~= '' then
    redis.call('ZADD', IN_FLIGHT .. key, time + MINUTE, id)
  end
  wait_in_line(id)
end

local function tell_job(id, event, number)
  tell(JOB, FIELDS, id, event, number)
end

-- queued -> running. The caller has taken it out of the line. Returns the attempt, and, for a job with
-- a run deadline, the ms until then, which count from its first start.
local function start(id, worker, lease_ms)
  local time = now()
  count_queued(id, -1)
  redis.call('HINCRBY', RUNNING, redis.call('HGET', JOB .. id, 'model'), 1)
  redis.call('HSET', JOB .. id, 'status', 'running', 'started_at', time, 'worker', worker)
  redis.call('ZADD', LEASES, time + lease_ms, id)
  redis.call('ZREM', QUEUE_DEADLINES, id)
  local attempt = redis.call('HINCRBY', JOB .. id, 'attempt', 1)
  announce(id, 'running')
  tell_job(id, 'running', attempt)
  local timeout_ms = redis.call('HGET', JOB .. id, 'run_timeout_ms')
  if timeout_ms then
    redis.call('HSETNX', JOB .. id, 'run_deadline', time + timeout_ms)
    return attempt, redis.call('HGET', JOB .. id, 'run_deadline') - time
  end
  return attempt
end

local function stop_running(id)
  redis.call('ZREM', LEASES, id)
  redis.call('HINCRBY', RUNNING, redis.call('HGET', JOB .. id, 'model'), -1)
end

-- queued | running -> a terminal state, with more fields of the record as they come. Of the tokens
-- that its key was charged, those not `used` go back.
local function finish(id, status, used, ...)
  local job = redis.call('HMGET', JOB .. id, 'status', 'model', 'key', 'tokens', 'retry_of')
  if job[1] == 'running' then
    stop_running(id)
  else
    redis.call('ZREM', WAITING .. job[2], id)
    redis.call('ZREM', SUSPECTS .. job[2], id)
    count_queued(id, -1)
  end
  local time, key = now(), job[3]
  redis.call('HSET', JOB .. id, 'status', status, 'finished_at', time, ...)
  redis.call('HDEL', JOB .. id, 'cancel_requested')
  redis.call('ZREM', QUEUE_DEADLINES, id)
  local ttl = JOB_TTL
  if status == 'failed' then -- a dead letter, with all that it takes to run again
    ttl = DEAD_LETTER_TTL
    redis.call('ZADD', DEAD_LETTERS, time, id)
  else
    redis.call('HDEL', JOB .. id, 'request')
  end
  for _, prefix in ipairs({ JOB, STREAM, SENT }) do
    redis.call('EXPIRE', prefix .. id, ttl)
  end
  redis.call('ZADD', ENDED, time + ttl * 1000, key .. ' ' .. id)
  if key ~= '' then
    redis.call('ZREM', IN_FLIGHT .. key, id)
    if not job[5] then -- what was redriven was not charged again
      refund(key, job[4] - used)
    end
  end
  announce(id, status)
  tell_job(id, status)
end

-- queued -> expired, if its queue deadline has passed. Returns whether it did.
local function expire_job(id)
  local deadline = redis.call('ZSCORE', QUEUE_DEADLINES, id)
  if not deadline or tonumber(deadline) > now() then
    return false
  end
  finish(id, 'expired', 0)
  redis.call('HINCRBY', EXPIRED, redis.call('HGET', JOB .. id, 'model'), 1)
  return true
end

-- Takes the next queued job out of the line; nil if none waits. Ids without a record are dropped.
local function next_waiting(model)
  while true do
    local id = redis.call('ZPOPMIN', WAITING .. model)[1]
    if not id or (redis.call('HGET', JOB .. id, 'status') == 'queued' and not expire_job(id)) then
      return id
    end
  end
end

-- running -> queued; or -> cancelled, if a client has asked for it
local function requeue_job(id)
  if redis.call('HEXISTS', JOB .. id, 'cancel_requested') == 1 then
    return finish(id, 'cancelled', 0)
  end
  stop_running(id)
  redis.call('HSET', JOB .. id, 'status', 'queued')
  redis.call('HDEL', JOB .. id, 'started_at', 'worker')
  wait_in_line(id)
  announce(id, 'queued')
end

-- Ended -> (nothing): all that is known about a job goes.
local function forget_job(id, key)
  redis.call('DEL', JOB .. id, STREAM .. id, SENT .. id)
  redis.call('ZREM', JOBS_OF .. key, id)
  redis.call('ZREM', DEAD_LETTERS, id)
  redis.call('ZREM', ENDED, key .. ' ' .. id)
end
