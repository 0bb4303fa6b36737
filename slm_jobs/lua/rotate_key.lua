-- rotate_key(key, digest) -> the key's fields and values; nil if there is none, or it is revoked
local key = KEY .. ARGV[2]
allow_when_full()

if redis.call('EXISTS', key) == 0 or redis.call('HEXISTS', key, 'revoked_at') == 1 then
  return nil
end
redis.call('HSET', key, 'digest', ARGV[3])
return redis.call('HGETALL', key)
