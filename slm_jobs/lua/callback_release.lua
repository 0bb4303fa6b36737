-- callback_release(id, claim, ...)
-- Claims that nobody tried: these deliveries are due at once, and no attempt is counted.
allow_when_full()

for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local known = redis.call('HMGET', DELIVERY .. id, 'claim', 'status', 'lane')
  if known[1] == ARGV[i + 1] and known[2] == 'pending' then
    redis.call('HINCRBY', DELIVERY .. id, 'claim', 1)
    set_due(id, known[3], now())
    redis.call('PUBLISH', CALLBACKS_DUE, id)
  end
end
