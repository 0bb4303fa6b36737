-- What every script begins with: the clock, tickets, what a key may do, and a job's life. Each change
-- of a job's state is one function here; the scripts only decide which of them happens. The names in capitals are
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

---- API keys and their limits -------------------------------------------------------------------

local MINUTE = 60000 -- ms

-- Whether two digests are equal, in a time that does not tell where they differ.
local function same(a, b)
  if #a ~= #b then
    return false
  end
  local difference = 0
  for i = 1, #a do
    difference = difference + math.abs(a:byte(i) - b:byte(i))
  end
  return difference == 0
end

-- Whether `digest` is that of the key's secret, and the key is not revoked.
local function authorised(key, digest)
  local stored = redis.call('HMGET', KEY .. key, 'digest', 'revoked_at')
  return stored[1] and not stored[2] and same(stored[1], digest)
end

-- How full the key's meter for `policy` is at `time`: a leaky bucket, which is the generic cell rate
-- algorithm (ITU-T I.371) told the other way round. One unit of the policy is MINUTE here, and
-- `limit` leak out each ms, so all numbers are whole and nothing drifts.
local function level_of(key, policy, limit, time)
  local stored = redis.call('HMGET', USAGE .. key, policy, policy .. '_at')
  local elapsed = time - (tonumber(stored[2]) or 0)
  local leaked = math.min(math.max(elapsed, 0), MINUTE) * limit
  return math.max((tonumber(stored[1]) or 0) - leaked, 0)
end

local function set_level(key, policy, level, time)
  redis.call('HSET', USAGE .. key, policy, level, policy .. '_at', time)
end

-- How a request for `cost` units a minute stands: {policy, limit, remaining, ms until all is there
-- again, ms until it may pass (0: now, -1: never)}, all but the last as if it were let through when
-- it may; and what the meter then shows.
local function meter(key, policy, limit, cost, time)
  local level = level_of(key, policy, limit, time)
  local full, wait_ms = limit * MINUTE, 0
  if cost > limit then
    wait_ms = -1
  elseif level + cost * MINUTE > full then
    wait_ms = math.ceil((level + cost * MINUTE - full) / limit)
  else
    level = level + cost * MINUTE
  end
  local remaining = math.floor((full - level) / MINUTE)
  return { policy, limit, remaining, math.ceil(level / limit), wait_ms }, level
end

-- The same for what is held rather than used up: when it is given back nobody knows.
local function stock(policy, limit, held, cost)
  local wait_ms = 0
  if cost > limit then
    wait_ms = -1
  elseif held + cost > limit then
    wait_ms = 1000
  else
    held = held + cost
  end
  return { policy, limit, math.max(limit - held, 0), 0, wait_ms }
end

-- The key's jobs that have not ended. Each holds its place under a lease: what is looked at again and
-- found ended, or gone, loses it.
local function count_in_flight(key, time)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', IN_FLIGHT .. key, '-inf', time, 'LIMIT', 0, 16)) do
    local status = redis.call('HGET', JOB .. id, 'status')
    if status == 'queued' or status == 'running' then
      redis.call('ZADD', IN_FLIGHT .. key, time + MINUTE, id)
    else
      redis.call('ZREM', IN_FLIGHT .. key, id)
    end
  end
  return redis.call('ZCARD', IN_FLIGHT .. key)
end

-- Gives back the tokens that were charged and not used.
local function refund(key, unused)
  local limit = tonumber(redis.call('HGET', KEY .. key, 'tokens_per_minute'))
  if limit and unused > 0 then
    local time = now()
    local level = level_of(key, 'tokens', limit, time)
    set_level(key, 'tokens', math.max(level - unused * MINUTE, 0), time)
  end
end

---- A job's life --------------------------------------------------------------------------------

local PRIORITY_STEP = 1e13 -- more jobs than there will ever be

-- Tells who waits for the job, or follows it, that something changed.
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
-- job that comes back stands where it stood. Fair share will go here: into this score, and into
-- `next_waiting`, which takes the lowest.
local function wait_in_line(id)
  local job = redis.call('HMGET', JOB .. id, 'model', 'sequence', 'priority')
  local model = job[1]
  redis.call('ZADD', WAITING .. model, job[2] - job[3] * PRIORITY_STEP, id)
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
    redis.call('ZRANK', line, id) or 0,
    redis.call('ZCARD', line),
    tonumber(redis.call('HGET', QUEUED_TOKENS, job[2]) or 0),
  }
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

-- (nothing) -> queued. `key` is '' for nobody's; `tokens` is what it may take at most; `about` is what
-- its record tells of the request.
local function create(id, key, model, priority, tokens, about, request)
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
    'crashes', 0)
  redis.call('ZADD', JOBS_OF .. key, time * 1000 + sequence % 1000, id)
  if key ~= '' then
    redis.call('ZADD', IN_FLIGHT .. key, time + MINUTE, id)
  end
  wait_in_line(id)
end

-- queued -> running. The caller has taken it out of the line. Returns the attempt.
local function start(id, worker, lease_ms)
  local time = now()
  count_queued(id, -1)
  redis.call('HINCRBY', RUNNING, redis.call('HGET', JOB .. id, 'model'), 1)
  redis.call('HSET', JOB .. id, 'status', 'running', 'started_at', time, 'worker', worker)
  redis.call('ZADD', LEASES, time + lease_ms, id)
  announce(id, 'running')
  return redis.call('HINCRBY', JOB .. id, 'attempt', 1)
end

local function stop_running(id)
  redis.call('ZREM', LEASES, id)
  redis.call('HINCRBY', RUNNING, redis.call('HGET', JOB .. id, 'model'), -1)
end

-- queued | running -> a terminal state, with more fields of the record as they come. Of the tokens
-- that its key was charged, those not `used` go back.
local function finish(id, status, ttl_seconds, used, ...)
  local job = redis.call('HMGET', JOB .. id, 'status', 'model', 'key', 'tokens')
  if job[1] == 'running' then
    stop_running(id)
  else
    redis.call('ZREM', WAITING .. job[2], id)
    count_queued(id, -1)
  end
  local time, key = now(), job[3]
  redis.call('HSET', JOB .. id, 'status', status, 'finished_at', time, ...)
  redis.call('HDEL', JOB .. id, 'cancel_requested')
  if status ~= 'failed' then -- what failed may be wanted again
    redis.call('HDEL', JOB .. id, 'request')
  end
  for _, prefix in ipairs({ JOB, STREAM, SENT }) do
    redis.call('EXPIRE', prefix .. id, ttl_seconds)
  end
  redis.call('ZADD', ENDED, time + ttl_seconds * 1000, key .. ' ' .. id)
  if key ~= '' then
    redis.call('ZREM', IN_FLIGHT .. key, id)
    refund(key, job[4] - used)
  end
  announce(id, status)
end

-- running -> queued; or -> cancelled, if a client has asked for it
local function requeue(id, ttl_seconds)
  if redis.call('HEXISTS', JOB .. id, 'cancel_requested') == 1 then
    return finish(id, 'cancelled', ttl_seconds, 0)
  end
  stop_running(id)
  redis.call('HSET', JOB .. id, 'status', 'queued')
  redis.call('HDEL', JOB .. id, 'started_at', 'worker')
  wait_in_line(id)
  announce(id, 'queued')
end

-- Ended -> (nothing): all that is known about a job goes.
local function forget(id, key)
  redis.call('DEL', JOB .. id, STREAM .. id, SENT .. id)
  redis.call('ZREM', JOBS_OF .. key, id)
  redis.call('ZREM', ENDED, key .. ' ' .. id)
end

---- Workers -------------------------------------------------------------------------------------

local function forget_worker(worker)
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', WORKER_INFO, worker)
end

