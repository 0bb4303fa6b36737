-- revoke_key(key) -> 1, or 0 if there is none; a revoked one stays as it is
local key = KEY .. ARGV[2]
allow_when_full()

if redis.call('EXISTS', key) == 0 then
  return 0
end
redis.call('HSETNX', key, 'revoked_at', now())
return 1
