-- file_commit(id, key, most files of a key, how many parts it has, how long it is kept in s,
--             field, value, ...)
-- -> {"taken", the record} | {"many"} | {"lost"}, if its parts are gone
-- Until then nobody sees the file, and its parts expire by themselves. Committed again it is left as
-- it is, so a caller that got no reply may ask again.
local id, key, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local parts, ttl_seconds = tonumber(ARGV[5]), tonumber(ARGV[6])
local files = FILES_OF .. key

if redis.call('EXISTS', FILE .. id) == 1 then
  return { 'taken', redis.call('HGETALL', FILE .. id) }
end
if redis.call('LLEN', FILE_UPLOAD .. id) ~= parts then
  return { 'lost' }
end
for _, other in ipairs(redis.call('ZRANGE', files, 0, -1)) do
  if redis.call('EXISTS', FILE .. other) == 0 then
    redis.call('ZREM', files, other)
  end
end
if redis.call('ZCARD', files) >= most then
  return { 'many' }
end

local time = now()
redis.call('HSET', FILE .. id,
  'key', key,
  'parts', parts,
  'created_at', time,
  'expires_at', time + ttl_seconds * 1000,
  unpack(ARGV, 7))
redis.call('EXPIRE', FILE .. id, ttl_seconds)
if parts > 0 then
  redis.call('RENAME', FILE_UPLOAD .. id, FILE_PARTS .. id)
end
redis.call('EXPIRE', FILE_PARTS .. id, ttl_seconds)
redis.call('ZADD', files, time, id)
if redis.call('TTL', files) < ttl_seconds then
  redis.call('EXPIRE', files, ttl_seconds)
end
return { 'taken', redis.call('HGETALL', FILE .. id) }
