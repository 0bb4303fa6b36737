-- callback_settle(most attempts that are kept, id, claim, attempt as JSON, status, ms until the next
--                 attempt, ...) -> for each 1, or 0 if the claim is stale
local most, settled = ARGV[2], {}
allow_when_full()

for i = 3, #ARGV, 5 do
  local id, status = ARGV[i], ARGV[i + 3]
  local lane = claimed_lane(id, ARGV[i + 1])
  if lane then
    redis.call('RPUSH', ATTEMPTS .. id, ARGV[i + 2])
    redis.call('LTRIM', ATTEMPTS .. id, -most, -1)
    redis.call('HINCRBY', DELIVERY .. id, 'tries', 1)
    redis.call('HINCRBY', DELIVERY .. id, 'claim', 1) -- it settles once
    if status == 'pending' then
      set_due(id, lane, now() + ARGV[i + 4])
    else
      end_delivery(id, status)
    end
  end
  settled[#settled + 1] = lane and 1 or 0
end
return settled
