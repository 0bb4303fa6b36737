-- callback_claim(room, most of a lane, most of a host, lease in ms, process, number of its claim, number
--                of its last claim whose reply came, a secret that nobody knows yet, lane, how many the
--                process is at there, how many it may be, ...)
-- -> {ms until something more may be claimed, {{id, lane, its fields}, ...}, {key, {its hosts as JSON or
--    nil, whether it was revoked, {secret, ms at which it expires or '', ...}}, ...}}
-- What is claimed stays due, when the lease ends: who dies gives it back by doing nothing.
local room, per_lane, per_host = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lease_ms, process, claim, answered, candidate = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local KEYS_MOST, WAIT_MOST = 4096, 60000
allow_when_full()

if is_late_claim(CLAIMED_CALLBACKS .. process, claim, answered, release) then
  return { 0, {}, {} }
end

local held, most = {}, {} -- of lanes, of keys and of hosts; of lanes
local function hold(lane, count)
  local key, host = parts_of(lane)
  for _, name in ipairs({ lane, key, host }) do
    held[name] = (held[name] or 0) + count
  end
end
for i = 10, #ARGV, 3 do
  hold(ARGV[i], tonumber(ARGV[i + 1]))
  most[ARGV[i]] = tonumber(ARGV[i + 2])
end

local function free_in(lane)
  local _, host = parts_of(lane)
  return math.min((most[lane] or per_lane) - (held[lane] or 0), per_host - (held[host] or 0))
end

-- Whoever holds something leaves as much free, so there is something left for who comes next.
local function share_of(key)
  local mine = held[key] or 0
  return mine == 0 and math.min(room, math.max(1, math.floor(room / 2))) or math.floor((room - mine) / 2)
end

local time, found, signing, claimed = now(), {}, {}, {}
local lanes_most = (#ARGV - 9) / 3 + room -- as only so many can be full

-- Takes up to `free` of what is due in a lane. Returns how many.
local function take(lane, free)
  local count = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE .. lane, '-inf', time, 'LIMIT', 0, free)) do
    if redis.call('EXISTS', DELIVERY .. id) == 0 then
      drop_due(id, lane) -- only if somebody deleted a record by hand
    else
      redis.call('ZADD', DUE .. lane, time + lease_ms, id)
      claimed[#claimed + 1] = { id, redis.call('HINCRBY', DELIVERY .. id, 'claim', 1) }
      found[#found + 1] = { id, lane, redis.call('HGETALL', DELIVERY .. id) }
      count = count + 1
    end
  end
  place_lane(lane, 0)
  hold(lane, count)
  room = room - count
  return count
end

-- Who may be given something now, of whom no more are needed than there is room; those who hold least
-- come first.
local offers = {}
for i, key in ipairs(redis.call('ZRANGEBYSCORE', TELLING, '-inf', time, 'LIMIT', 0, KEYS_MOST)) do
  if #offers >= room then
    break
  end
  local lanes = {}
  for _, lane in ipairs(redis.call('ZRANGEBYSCORE', LANES .. key, '-inf', time, 'LIMIT', 0, lanes_most)) do
    if free_in(lane) > 0 then
      lanes[#lanes + 1] = lane
    end
  end
  if #lanes > 0 and share_of(key) > 0 then
    offers[#offers + 1] = { key = key, lanes = lanes, held = held[key] or 0, place = i }
  end
end
table.sort(offers, function(a, b)
  return a.held < b.held or (a.held == b.held and a.place < b.place)
end)

local unsigned = false
for i, offer in ipairs(offers) do
  local key, before = offer.key, room
  local is_first = redis.call('EXISTS', CALLBACK_SECRETS .. key) == 0
  if is_first and not candidate then
    unsigned = true -- the next claim has another
  else
    local left = math.min(share_of(key), math.max(1, math.floor(room / (#offers - i + 2))))
    for _, lane in ipairs(offer.lanes) do
      local free = math.min(free_in(lane), left)
      left = free > 0 and left - take(lane, free) or left
    end
  end
  if room < before then
    local about = redis.call('HMGET', KEY .. key, 'callback_hosts', 'revoked_at')
    signing[#signing + 1] = key
    signing[#signing + 1] = { about[1], about[2] and 1 or 0, secrets_of(key, candidate) }
    candidate = not is_first and candidate
  end
end
remember_claim(CLAIMED_CALLBACKS .. process, claim, claimed, lease_ms)

-- When something is due in a lane of the key that has room; nil if none has.
local function next_of(key)
  local lanes = redis.call('ZRANGE', LANES .. key, 0, lanes_most, 'WITHSCORES')
  for i = 1, #lanes, 2 do
    if free_in(lanes[i]) > 0 then
      return tonumber(lanes[i + 1])
    end
  end
end

local wait = unsigned and 0 or WAIT_MOST
local keys = redis.call('ZRANGE', TELLING, 0, KEYS_MOST, 'WITHSCORES')
for i = 1, #keys, 2 do
  if room == 0 or keys[i + 1] - time >= wait then
    break
  end
  local next_due = share_of(keys[i]) > 0 and next_of(keys[i])
  wait = next_due and math.min(wait, math.max(next_due - time, 0)) or wait
end
return { wait, found, signing }
