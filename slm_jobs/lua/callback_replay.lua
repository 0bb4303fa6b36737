-- callback_replay(id, ...) -> how many are due again; those that are pending, or unknown, are left alone
local replayed = 0
allow_when_full()

for i = 2, #ARGV do
  local id = ARGV[i]
  local about = redis.call('HMGET', DELIVERY .. id, 'status', 'lane', 'key', 'of')
  if about[1] and about[1] ~= 'pending' then
    redis.call('HSET', DELIVERY .. id, 'status', 'pending', 'tries', 0)
    for _, name in ipairs({ DELIVERY .. id, ATTEMPTS .. id, DELIVERIES_OF .. about[4] }) do
      redis.call('PERSIST', name)
    end
    redis.call('ZREM', UNDELIVERED .. about[3], id)
    set_due(id, about[2], now())
    redis.call('PUBLISH', CALLBACKS_DUE, id)
    replayed = replayed + 1
  end
end
return replayed
