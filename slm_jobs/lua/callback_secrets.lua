-- callback_secrets(key, a secret that nobody knows yet, ms for which the old ones sign on if it is to
--                  replace them) -> {secret, ms at which it expires or inf, ...}, the newest first
local secrets, candidate, overlap_ms = CALLBACK_SECRETS .. ARGV[2], ARGV[3], ARGV[4]
local time = now()
allow_when_full()

redis.call('ZREMRANGEBYSCORE', secrets, '-inf', time)
if overlap_ms then -- none of them signs for longer
  for _, secret in ipairs(redis.call('ZRANGEBYSCORE', secrets, time + overlap_ms, '+inf')) do
    redis.call('ZADD', secrets, time + overlap_ms, secret)
  end
  redis.call('ZREMRANGEBYSCORE', secrets, '-inf', time)
end
if redis.call('ZCOUNT', secrets, '+inf', '+inf') == 0 then
  redis.call('ZADD', secrets, '+inf', candidate)
end
return redis.call('ZREVRANGE', secrets, 0, -1, 'WITHSCORES')
