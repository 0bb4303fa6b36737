-- callback_secrets(key, a secret that nobody knows yet, ms for which the old ones sign on if it is to
--                  replace them) -> {secret, ms at which it expires or inf, ...}, the newest first
local secrets, candidate, overlap_ms = CALLBACK_SECRETS .. ARGV[2], ARGV[3], ARGV[4]
local time = now()
allow_when_full()

redis.call('ZREMRANGEBYSCORE', secrets, '-inf', time)
local current = redis.call('ZRANGEBYSCORE', secrets, '+inf', '+inf')[1]
if current and overlap_ms then
  redis.call('ZADD', secrets, time + overlap_ms, current)
  redis.call('ZREMRANGEBYSCORE', secrets, '-inf', time)
end
if overlap_ms or not current then
  redis.call('ZADD', secrets, '+inf', candidate)
end
return redis.call('ZREVRANGE', secrets, 0, -1, 'WITHSCORES')
