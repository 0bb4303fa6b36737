-- The outbox of callbacks. A delivery is written by the script that makes what it tells of happen, with
-- a copy of the record, so that it outlives the job or batch. Deliveries of one key to one host are a
-- lane. A key's lanes, and the keys, are ordered by what is due first, so that none hides the others.

local COPY = 'record_' -- in front of the names of copied fields
local OLD_SECRETS_MOST = 3 -- that sign besides the current one

-- The key and the host of a lane. A key has no ':', and a host one.
local function parts_of(lane)
  return lane:match('^(%S*) (.*)$')
end

-- Where `member` stands in `line`: by what is first in `waiting`, or not at all.
local function place_in(line, member, waiting)
  local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  if first then
    redis.call('ZADD', line, first, member)
  else
    redis.call('ZREM', line, member)
  end
end

-- After a lane has got `more` deliveries, or fewer, or others are due first.
local function place_lane(lane, more)
  local key = parts_of(lane)
  place_in(LANES .. key, lane, DUE .. lane)
  place_in(TELLING, key, LANES .. key)
  if more ~= 0 and redis.call('HINCRBY', PENDING_CALLBACKS, key, more) <= 0 then
    redis.call('HDEL', PENDING_CALLBACKS, key)
  end
end

local function set_due(id, lane, time)
  place_lane(lane, redis.call('ZADD', DUE .. lane, time, id))
end

local function drop_due(id, lane)
  place_lane(lane, -redis.call('ZREM', DUE .. lane, id))
end

-- If a job or batch wants to be told of `event`, one that may happen again with its `number`: a copy of
-- its record goes out.
local function tell(prefix, fields, id, event, number)
  local work = prefix .. id
  local wanted = redis.call('HGET', work, 'callback_events')
  if not wanted or not (' ' .. wanted .. ' '):find(' ' .. event .. ' ', 1, true) then
    return
  end
  local target = redis.call('HMGET', work, 'callback_url', 'callback_lane', 'callback_link',
    'callback_outputs', 'key', 'callback_request')
  local delivery, time, values = id .. '-' .. event, now(), redis.call('HMGET', work, unpack(fields))
  if number then
    delivery = delivery .. '-' .. number
  end
  redis.call('HSET', DELIVERY .. delivery,
    'of', id,
    'type', id:match('^%a+') .. '.' .. event,
    'url', target[1],
    'lane', target[2],
    'link', target[3],
    'key', target[5],
    'request_id', target[6] or '',
    'created_at', time,
    'status', 'pending',
    'claim', 0,
    'tries', 0)
  for i, name in ipairs(fields) do
    if values[i] and (name ~= 'outputs' or target[4] == '1') then
      redis.call('HSET', DELIVERY .. delivery, COPY .. name, values[i])
    end
  end
  redis.call('RPUSH', DELIVERIES_OF .. id, delivery)
  redis.call('PERSIST', DELIVERIES_OF .. id)
  set_due(delivery, target[2], time)
  redis.call('PUBLISH', CALLBACKS_DUE, delivery)
end

-- The lane of a delivery, if `claim` is the one that may settle it.
local function claimed_lane(id, claim)
  local known = redis.call('HMGET', DELIVERY .. id, 'claim', 'status', 'lane')
  return known[1] == claim and known[2] == 'pending' and known[3]
end

-- A claim that nobody tried: the delivery is due at once, and no attempt is counted.
local function release(id, claim)
  local lane = claimed_lane(id, claim)
  if lane then
    redis.call('HINCRBY', DELIVERY .. id, 'claim', 1)
    set_due(id, lane, now())
    redis.call('PUBLISH', CALLBACKS_DUE, id)
  end
end

-- pending -> delivered | failed. Who is to be told no more may still look it up for a while; the list of
-- its job or batch stays as long as any other is pending.
local function end_delivery(id, status)
  local time, about = now(), redis.call('HMGET', DELIVERY .. id, 'lane', 'key', 'of')
  redis.call('HSET', DELIVERY .. id, 'status', status)
  drop_due(id, about[1])
  redis.call('EXPIRE', DELIVERY .. id, BATCH_TTL)
  redis.call('EXPIRE', ATTEMPTS .. id, BATCH_TTL)
  local pending = false
  for _, other in ipairs(redis.call('LRANGE', DELIVERIES_OF .. about[3], 0, -1)) do
    pending = pending or redis.call('HGET', DELIVERY .. other, 'status') == 'pending'
  end
  if not pending then
    redis.call('EXPIRE', DELIVERIES_OF .. about[3], BATCH_TTL)
  end
  if status == 'failed' then
    redis.call('ZREMRANGEBYSCORE', UNDELIVERED .. about[2], '-inf', time - BATCH_TTL * 1000)
    redis.call('ZADD', UNDELIVERED .. about[2], time, id)
    redis.call('EXPIRE', UNDELIVERED .. about[2], BATCH_TTL)
  end
end

-- All that is known about the callbacks of a job or batch goes, also what was not delivered.
local function forget_deliveries(work)
  for _, id in ipairs(redis.call('LRANGE', DELIVERIES_OF .. work, 0, -1)) do
    local about = redis.call('HMGET', DELIVERY .. id, 'lane', 'key')
    if about[1] then
      drop_due(id, about[1])
      redis.call('ZREM', UNDELIVERED .. about[2], id)
    end
    redis.call('DEL', DELIVERY .. id, ATTEMPTS .. id)
  end
  redis.call('DEL', DELIVERIES_OF .. work)
end

-- What a key's callbacks are signed with: {secret, ms at which it expires or '' for the current one,
-- ...}, the newest first. Without one, or with `overlap_ms`, for which those before sign on at most, the
-- `candidate` becomes it.
local function secrets_of(key, candidate, overlap_ms)
  local name, time, entries = CALLBACK_SECRETS .. key, now(), {}
  local stored, found = redis.call('LRANGE', name, 0, -1), {}
  if #stored == 0 or overlap_ms then
    entries[1] = candidate .. ' '
  end
  for _, entry in ipairs(stored) do
    local secret, expires_at = entry:match('^(%S+) (%d*)$')
    if overlap_ms then
      expires_at = math.min(tonumber(expires_at) or time + overlap_ms, time + overlap_ms)
    end
    if expires_at == '' or tonumber(expires_at) > time and #entries <= OLD_SECRETS_MOST then
      entries[#entries + 1] = secret .. ' ' .. expires_at
    end
  end
  if table.concat(entries, ',') ~= table.concat(stored, ',') then
    redis.call('DEL', name)
    redis.call('RPUSH', name, unpack(entries))
  end
  for _, entry in ipairs(entries) do
    found[#found + 1], found[#found + 2] = entry:match('^(%S+) (%d*)$')
  end
  return found
end
