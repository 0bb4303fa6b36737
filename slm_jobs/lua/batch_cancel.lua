-- batch_cancel(batch) -> {now, the record}; the record is empty if there is no such batch
-- What waits ends here, the workers of running rows are told. One that has ended stays as it is.
local batch = ARGV[2]
allow_when_full()

local status = redis.call('HGET', BATCH .. batch, 'status')
if status == 'validating' then
  drop_rows(batch)
  end_batch(batch, 'cancelled')
elseif status == 'running' then
  redis.call('HSETNX', BATCH .. batch, 'cancel_requested', now())
  local leases = redis.call('HGETALL', LEASED .. batch)
  for i = 1, #leases, 2 do
    local attempt, worker = leases[i + 1]:match('^(%d+) %d+ (%S+)$')
    if worker ~= NOBODY then
      redis.call('PUBLISH', COMMANDS .. worker, row_id(batch, leases[i]) .. ' ' .. attempt)
    end
  end
  stop_batch(batch, 'cancelled')
end
return { now(), batch_record(batch) }
