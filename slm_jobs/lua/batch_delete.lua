-- batch_delete(batch) -> 1, or 0 if it has not ended; 1 also if there is none
local batch = ARGV[2]
allow_when_full()

local record = redis.call('HMGET', BATCH .. batch, 'status', 'key')
if record[1] == 'validating' or record[1] == 'running' then
  return 0
end
forget_batch(batch, record[2] or '')
forget_deliveries(batch)
return 1
