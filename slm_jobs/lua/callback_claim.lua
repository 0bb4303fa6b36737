-- callback_claim(room, most of a lane, lease in ms, lane, how many the caller has of it, ...)
-- -> {ms until something more is due, {id, claim, its fields, its attempts}, ...}
-- What is claimed stays due, when the lease ends: who dies gives it back by doing nothing.
local room, per_lane, lease_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local LANES_MOST, WAIT_MOST = 4096, 60000
allow_when_full()

local held = {}
for i = 5, #ARGV, 2 do
  held[ARGV[i]] = tonumber(ARGV[i + 1])
end

local time, found = now(), {}
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', LANES, '-inf', time, 'LIMIT', 0, LANES_MOST)) do
  local free = math.min(per_lane - (held[lane] or 0), room)
  if free > 0 then
    local due = redis.call('ZRANGEBYSCORE', DUE .. lane, '-inf', time, 'LIMIT', 0, free)
    for _, id in ipairs(due) do
      redis.call('ZADD', DUE .. lane, time + lease_ms, id)
      found[#found + 1] = {
        id,
        redis.call('HINCRBY', DELIVERY .. id, 'claim', 1),
        redis.call('HGETALL', DELIVERY .. id),
        redis.call('LRANGE', ATTEMPTS .. id, 0, -1),
      }
    end
    held[lane] = (held[lane] or 0) + #due
    room = room - #due
    place_lane(lane)
  end
end

local wait = WAIT_MOST
local lanes = redis.call('ZRANGE', LANES, 0, LANES_MOST, 'WITHSCORES')
for i = 1, #lanes, 2 do
  if (held[lanes[i]] or 0) < per_lane then
    wait = math.min(math.max(lanes[i + 1] - time, 0), WAIT_MOST)
    break
  end
end
return { wait, found }
