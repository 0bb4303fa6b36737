-- batch_invalid(batch, number of this call in its upload or -, ms after which an upload that fell silent is
--               given up, entry, entry, ...) -> 1, or 0 if the upload was given up
local batch, call, upload_ms, time = ARGV[2], ARGV[3], ARGV[4], now()
local record = redis.call('HMGET', BATCH .. batch, 'status', 'call')
if record[1] ~= 'validating' then
  return 0
elseif call ~= '-' and record[2] == call then -- its reply was lost
  return 1
end
redis.call('HSET', BATCH .. batch, 'call', call, 'taken', '')
for i = 5, #ARGV do
  redis.call('RPUSH', FAILURES .. batch, time .. ' - ' .. ARGV[i])
end
redis.call('HINCRBY', BATCH .. batch, 'total', #ARGV - 4)
redis.call('HINCRBY', BATCH .. batch, 'failed', #ARGV - 4)
redis.call('ZADD', UPLOADS, time + upload_ms, batch)
return 1
