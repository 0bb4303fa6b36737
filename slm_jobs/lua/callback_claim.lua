-- callback_claim(room, most of a lane, most of a key, lease in ms, lane or key, how many the caller has
--                of it, ...)
-- -> {ms until something more is due, {id, claim, its fields, its attempts}, ...}
-- What is claimed stays due, when the lease ends: who dies gives it back by doing nothing.
local room, per_lane, per_key = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lease_ms = ARGV[5]
local LANES_MOST, WAIT_MOST = 4096, 60000
allow_when_full()

local held = {} -- by lane, and by key: a lane's name has a space
for i = 6, #ARGV, 2 do
  held[ARGV[i]] = tonumber(ARGV[i + 1])
end
local function free_in(lane)
  return math.min(per_lane - (held[lane] or 0), per_key - (held[lane:match('^%S*')] or 0))
end

local time, found = now(), {}
for _, lane in ipairs(redis.call('ZRANGEBYSCORE', LANES, '-inf', time, 'LIMIT', 0, LANES_MOST)) do
  local free = math.min(free_in(lane), room)
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
    for _, name in ipairs({ lane, lane:match('^%S*') }) do
      held[name] = (held[name] or 0) + #due
    end
    room = room - #due
    place_lane(lane)
  end
end

local wait = WAIT_MOST
local lanes = redis.call('ZRANGE', LANES, 0, LANES_MOST, 'WITHSCORES')
for i = 1, #lanes, 2 do
  if free_in(lanes[i]) > 0 then
    wait = math.min(math.max(lanes[i + 1] - time, 0), WAIT_MOST)
    break
  end
end
return { wait, found }
