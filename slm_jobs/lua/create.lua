-- create(id, model, request as JSON) -> the record, as fields and values
-- A known id is left as it is, so a caller that got no reply may ask again.
local id, model, request = ARGV[2], ARGV[3], ARGV[4]

if redis.call('EXISTS', JOB .. id) == 0 then
  create(id, model, request)
end
return redis.call('HGETALL', JOB .. id)
