-- batch_commit(batch, digest of its content, errors as JSON or '', how long the idempotency key is
--              remembered in s)
-- -> {now, the record}; nil if it was given up, or was committed with other content. Saying it again
-- changes nothing. With errors it has failed, else its rows wait from now on.
local batch, digest, errors, memory_seconds = unpack(ARGV, 2)
local time = now()

local record = redis.call('HMGET', BATCH .. batch, 'status', 'digest', 'reservation', 'window_ms')
if not record[1] or (record[1] ~= 'validating' and record[2] ~= digest) then
  return nil
end
if record[1] == 'validating' then
  redis.call('HSET', BATCH .. batch, 'digest', digest)
  if record[3] then
    redis.call('SET', record[3], digest .. ' ' .. batch, 'EX', memory_seconds)
  end
  if errors ~= '' then
    redis.call('HSET', BATCH .. batch, 'errors', errors)
    drop_rows(batch)
    end_batch(batch, 'failed')
  else
    redis.call('HSET', BATCH .. batch, 'status', 'running', 'expires_at', time + record[4])
    redis.call('ZREM', UPLOADS, batch)
    redis.call('ZADD', WINDOWS, time + record[4], batch)
    discard(CUSTOM_IDS .. batch)
    announce(batch, 'running')
    if redis.call('HGET', BATCH .. batch, 'pending') ~= '0' then
      join_shares(batch)
      while push_ticket(redis.call('HGET', BATCH .. batch, 'model')) do
      end
    end
    end_if_done(batch)
  end
end
return { time, batch_record(batch) }
