-- batch_add(batch, number of this call in its upload or -, whether Redis is nearly full, ms after which an
--           upload that fell silent is given up, custom_id, line, tokens, outputs, packed, custom_id, ...)
-- -> {"ok", i, line, ...}: the custom_id of row i, from 0, is taken by that line, so it was not added
--    {"gone"} | {"memory"} | {"limited": {the quotas}}; then nothing has changed
local batch, call, nearly_full, upload_ms = ARGV[2], ARGV[3], ARGV[4] == '1', ARGV[5]
local time = now()

local record = redis.call(
  'HMGET', BATCH .. batch, 'status', 'key', 'rows', 'pending', 'waiting_tokens', 'call', 'taken')
if record[1] ~= 'validating' then
  return { 'gone' }
end
if call ~= '-' and record[6] == call then -- its reply was lost
  local duplicates = {}
  for number in record[7]:gmatch('%d+') do
    duplicates[#duplicates + 1] = tonumber(number)
  end
  return { 'ok', unpack(duplicates) }
end
if nearly_full then
  return { 'memory' }
end

local rows, tokens, duplicates, new = {}, 0, {}, {}
for i = 6, #ARGV, 5 do
  local taken = new[ARGV[i]] or redis.call('HGET', CUSTOM_IDS .. batch, ARGV[i])
  if taken then
    duplicates[#duplicates + 1] = (i - 6) / 5
    duplicates[#duplicates + 1] = tonumber(taken)
  else
    new[ARGV[i]] = ARGV[i + 1]
    rows[#rows + 1] = i
    tokens = tokens + ARGV[i + 2]
  end
end

-- The key's ceilings hold for the batch as a whole: what it has so far counts as its cost.
local quotas, key = {}, record[2]
local limits = redis.call('HMGET', KEY .. key, 'batch_rows', 'batch_tokens')
local held = redis.call('HMGET', USAGE .. key, 'batch_rows', 'batch_tokens')
local own = { tonumber(record[4]), tonumber(record[5]) }
for i, policy in ipairs({ 'batch-rows', 'batch-tokens' }) do
  if limits[i] then
    local cost = own[i] + (i == 1 and #rows or tokens)
    quotas[#quotas + 1] = stock(policy, tonumber(limits[i]), (held[i] or 0) - own[i], cost)
  end
end
for _, quota in ipairs(quotas) do
  if quota[5] ~= 0 then
    return { 'limited', quotas } -- the caller gives the batch up
  end
end

for n, i in ipairs(rows) do
  local row = record[3] + n - 1
  redis.call('HSET', CUSTOM_IDS .. batch, ARGV[i], ARGV[i + 1])
  redis.call('HSET', ROWS .. batch, row, ARGV[i + 2] .. ' ' .. ARGV[i + 3] .. ' ' .. ARGV[i + 4])
end
redis.call('HSET', BATCH .. batch, 'call', call, 'taken', table.concat(duplicates, ' '))
redis.call('HINCRBY', BATCH .. batch, 'rows', #rows)
redis.call('HINCRBY', BATCH .. batch, 'total', #rows)
count_waiting(batch, #rows, tokens)
redis.call('ZADD', UPLOADS, time + upload_ms, batch)
return { 'ok', unpack(duplicates) }
