-- batch_invalid(batch, ms after which an upload that fell silent is given up, entry, entry, ...)
-- -> 1, or 0 if the upload was given up
local batch, upload_ms, time = ARGV[2], ARGV[3], now()
if redis.call('HGET', BATCH .. batch, 'status') ~= 'validating' then
  return 0
end
for i = 4, #ARGV do
  redis.call('RPUSH', FAILURES .. batch, time .. ' - ' .. ARGV[i])
end
redis.call('HINCRBY', BATCH .. batch, 'total', #ARGV - 3)
redis.call('HINCRBY', BATCH .. batch, 'failed', #ARGV - 3)
redis.call('ZADD', UPLOADS, time + upload_ms, batch)
return 1
