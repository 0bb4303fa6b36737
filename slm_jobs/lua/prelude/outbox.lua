-- The outbox of callbacks. A delivery is written by the script that makes what it tells of happen, with
-- a copy of the record, so that it outlives the job or batch. Deliveries of one key to one host are a
-- lane; lanes are ordered by what is due first in them, so that none holds up the others.

local COPY = 'record_' -- in front of the names of copied fields

-- The lane stands among LANES as long as something waits in it.
local function place_lane(lane)
  local first = redis.call('ZRANGE', DUE .. lane, 0, 0, 'WITHSCORES')[2]
  if first then
    redis.call('ZADD', LANES, first, lane)
  else
    redis.call('ZREM', LANES, lane)
  end
end

local function set_due(id, lane, time)
  redis.call('ZADD', DUE .. lane, time, id)
  place_lane(lane)
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
    'callback_outputs', 'key')
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
  set_due(delivery, target[2], time)
  redis.call('PUBLISH', CALLBACKS_DUE, delivery)
end

-- pending -> delivered | failed. Who is to be told no more may still look it up for a while.
local function end_delivery(id, status)
  local time, about = now(), redis.call('HMGET', DELIVERY .. id, 'lane', 'key', 'of')
  redis.call('HSET', DELIVERY .. id, 'status', status)
  redis.call('ZREM', DUE .. about[1], id)
  place_lane(about[1])
  for _, name in ipairs({ DELIVERY .. id, ATTEMPTS .. id, DELIVERIES_OF .. about[3] }) do
    redis.call('EXPIRE', name, BATCH_TTL)
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
      redis.call('ZREM', DUE .. about[1], id)
      place_lane(about[1])
      redis.call('ZREM', UNDELIVERED .. about[2], id)
    end
    redis.call('DEL', DELIVERY .. id, ATTEMPTS .. id)
  end
  redis.call('DEL', DELIVERIES_OF .. work)
end
