-- create(id, model, priority, tokens, most jobs that may wait, key, digest, idempotency key's digest,
--        body's digest, how long they are remembered in s, whether Redis is nearly full, what the
--        record tells of the request as JSON, request as JSON, field, value, ...)
-- -> {outcome, details, ...}, where the outcome is
--   "taken" or "known": {id, the record, its place, the quotas}; a known id is left as it is, so a
--       caller that got no reply may ask again, and so is the job of a known idempotency key
--   "unauthorised" | "conflict" (another body came with this idempotency key) | "gone": {id} |
--   "priority": {highest} | "memory" | "full": {waiting, their tokens} | "limited": {the quotas}
-- `key` is '' for jobs that are nobody's and have no limits.
local id, model, priority, tokens = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local most_waiting, key, digest = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local asked, body, memory_seconds, nearly_full = ARGV[9], ARGV[10], ARGV[11], ARGV[12] == '1'
local about, request = ARGV[13], ARGV[14]
local time = now()

if key ~= '' and not authorised(key, digest) then
  return { 'unauthorised' }
end

local known = redis.call('EXISTS', JOB .. id) == 1
if asked ~= '' then
  local before = redis.call('GET', IDEMPOTENCY .. key .. ':' .. asked)
  if before then
    local body_before, id_before = before:match('^(%S+) (%S+)$')
    if not same(body_before, body) then
      return { 'conflict' }
    end
    id, known = id_before, true
    if redis.call('EXISTS', JOB .. id) == 0 then
      return { 'gone', id }
    end
  end
end

local limits = {}
if key ~= '' then
  local names = { 'requests_per_minute', 'tokens_per_minute', 'jobs_in_flight', 'queued_tokens', 'max_priority' }
  local stored = redis.call('HMGET', KEY .. key, unpack(names))
  for i, name in ipairs(names) do
    limits[name] = tonumber(stored[i])
  end
end
if not known then
  if priority > (limits.max_priority or priority) then
    return { 'priority', limits.max_priority }
  end
  if nearly_full then
    return { 'memory' }
  end
  local waiting = redis.call('ZCARD', WAITING .. model)
  if waiting >= most_waiting then
    return { 'full', waiting, tonumber(redis.call('HGET', QUEUED_TOKENS, model) or 0) }
  end
end

-- All limits hold, or none of them is touched. What is known costs nothing.
local count = known and 0 or 1
local quotas, levels = {}, {}
if limits.requests_per_minute then
  quotas[#quotas + 1], levels.requests = meter(key, 'requests', limits.requests_per_minute, count, time)
end
if limits.tokens_per_minute then
  quotas[#quotas + 1], levels.tokens =
    meter(key, 'tokens', limits.tokens_per_minute, count * tokens, time)
end
if limits.jobs_in_flight then
  local held = known and redis.call('ZCARD', IN_FLIGHT .. key) or count_in_flight(key, time)
  quotas[#quotas + 1] = stock('jobs-in-flight', limits.jobs_in_flight, held, count)
end
if limits.queued_tokens then
  local queued = tonumber(redis.call('HGET', USAGE .. key, 'queued_tokens') or 0)
  quotas[#quotas + 1] = stock('queued-tokens', limits.queued_tokens, queued, count * tokens)
end
if known then
  return { 'known', id, record(id), place(id), quotas }
end
for _, quota in ipairs(quotas) do
  if quota[5] ~= 0 then
    return { 'limited', quotas }
  end
end

for policy, level in pairs(levels) do
  set_level(key, policy, level, time)
end
create(id, key, model, priority, tokens, about, request, unpack(ARGV, 15))
if asked ~= '' then
  redis.call('SET', IDEMPOTENCY .. key .. ':' .. asked, body .. ' ' .. id, 'EX', memory_seconds)
end
return { 'taken', id, record(id), place(id), quotas }
