-- batch_begin(id, key, digest, idempotency key's digest, whether Redis is nearly full, ms after which an
--             upload that fell silent is given up, field, value, ...)
-- -> {"begun"} | {"known", batch, digest of its content} | {"unauthorised"} | {"memory"} |
--    {"in_progress"} | {"conflict"} (the idempotency key made a job) | {"batch_gone", batch}
local batch, key, digest, asked = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local nearly_full, upload_ms = ARGV[6] == '1', ARGV[7]
local time = now()

if not authorised(key, digest) then
  return { 'unauthorised' }
end

local reservation
if asked ~= '' then
  reservation = IDEMPOTENCY .. key .. ':' .. asked
  local body, before = (redis.call('GET', reservation) or ''):match('^(%S+) (%S+)$')
  if before and not before:match('^batch_') then
    return { 'conflict' }
  elseif before and body ~= '-' then
    if redis.call('EXISTS', BATCH .. before) == 0 then
      return { 'batch_gone', before }
    end
    return { 'known', before, body }
  elseif before and before ~= batch then
    local silent_at = tonumber(redis.call('ZSCORE', UPLOADS, before) or 0)
    if silent_at > time then
      return { 'in_progress' }
    elseif silent_at > 0 then -- no janitor has come by
      abandon_batch(before)
    end
  end
end
if nearly_full then
  return { 'memory' }
end

redis.call('HSET', BATCH .. batch,
  'status', 'validating',
  'key', key,
  'created_at', time,
  'next', 0, 'rows', 0, 'waiting_tokens', 0,
  'total', 0, 'pending', 0, 'running', 0,
  'succeeded', 0, 'failed', 0, 'cancelled', 0, 'expired', 0,
  'prompt_tokens', 0, 'completion_tokens', 0,
  unpack(ARGV, 8))
redis.call('ZADD', UPLOADS, time + upload_ms, batch)
redis.call('ZADD', BATCHES_OF .. key, time * 1000 + redis.call('INCR', SEQUENCE) % 1000, batch)
if reservation then
  redis.call('SET', reservation, '- ' .. batch, 'EX', 604800)
  redis.call('HSET', BATCH .. batch, 'reservation', reservation)
end
return { 'begun' }
