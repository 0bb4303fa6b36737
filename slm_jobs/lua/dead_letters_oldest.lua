-- dead_letters_oldest(most) -> {how many there are, id, ...}, the oldest first. Drops those on the way
-- whose record is gone: while no worker is there, nobody sweeps.
local most = tonumber(ARGV[2])

local found, gone
repeat
  found, gone = {}, false
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEAD_LETTERS, '-inf', '+inf', 'LIMIT', 0, most)) do
    if redis.call('EXISTS', JOB .. id) == 1 then
      found[#found + 1] = id
    else
      redis.call('ZREM', DEAD_LETTERS, id)
      gone = true
    end
  end
until not gone
table.insert(found, 1, redis.call('ZCARD', DEAD_LETTERS))
return found
