-- finish(id, attempt, status, ttl in s, tokens used, field, value, ...) -> 1, or 0 if the attempt is
-- stale
local id, attempt, status, ttl_seconds, used = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
allow_when_full()

if not owns(id, attempt) then
  return 0
end
finish(id, status, ttl_seconds, used, unpack(ARGV, 7))
return 1
