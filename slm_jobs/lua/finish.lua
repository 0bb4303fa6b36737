-- finish(id, attempt, status, tokens used, field, value, ...) -> 1, or 0 if the attempt is stale
local id, attempt, status, used = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
allow_when_full()

if not owns(id, attempt) then
  return 0
end
finish(id, status, used, unpack(ARGV, 6))
return 1
