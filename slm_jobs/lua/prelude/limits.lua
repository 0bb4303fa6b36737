-- What an API key may do, and has done.

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
