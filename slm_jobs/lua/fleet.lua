-- fleet(model, model, ...)
-- -> {for each model {jobs waiting, jobs running, rows waiting, rows running, tokens that what waits may
--     take, ms for which the oldest waiting job has been there, jobs that ever expired}, the info of each
--     worker that is alive as JSON, dead letters, callbacks that are pending, ms for which the longest due
--     of them has been due}
local time = now()

-- In line jobs stand by priority, and by age among their like: the first of each priority is looked at.
local function oldest_ms(model, suspects)
  local oldest, above = time, '-inf'
  local function look(id)
    oldest = math.min(oldest, tonumber(redis.call('HGET', JOB .. id, 'created_at')) or oldest)
  end
  for _, id in ipairs(suspects) do
    look(id)
  end
  while true do
    local found = redis.call(
      'ZRANGEBYSCORE', WAITING .. model, above, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not found[1] then
      return math.max(time - oldest, 0)
    end
    look(found[1])
    above = (math.floor(found[2] / PRIORITY_STEP) + 1) * PRIORITY_STEP
  end
end

local function count(key, model)
  return math.max(tonumber(redis.call('HGET', key, model) or 0), 0)
end

local models = {}
for i = 2, #ARGV do
  local model = ARGV[i]
  local suspects = suspected_jobs(model)
  models[#models + 1] = {
    redis.call('ZCARD', WAITING .. model) + #suspects,
    count(RUNNING, model),
    count(ROWS_WAITING, model),
    count(ROWS_RUNNING, model),
    count(QUEUED_TOKENS, model) + count(ROW_TOKENS_WAITING, model),
    oldest_ms(model, suspects),
    count(EXPIRED, model),
  }
end

local alive = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. time, '+inf')
local infos = #alive > 0 and redis.call('HMGET', WORKER_INFO, unpack(alive)) or {}

local pending = 0
for _, number in ipairs(redis.call('HVALS', PENDING_CALLBACKS)) do
  pending = pending + number
end
local due = tonumber(redis.call('ZRANGE', TELLING, 0, 0, 'WITHSCORES')[2]) or time

return { models, infos, redis.call('ZCARD', DEAD_LETTERS), pending, math.max(time - due, 0) }
