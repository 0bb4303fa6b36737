-- redrive(id, id of the new job) -> {id of the new job, the record, its place}; nil if there is no such
-- dead letter. One that was redriven before gives the job that it became, so asking again is safe.
local id, new = ARGV[2], ARGV[3]

local before = redis.call('HGET', JOB .. id, 'redriven_as')
if before then
  return redis.call('EXISTS', JOB .. before) == 1 and { before, record(before), place(before) } or nil
end
if not redis.call('ZSCORE', DEAD_LETTERS, id) or redis.call('EXISTS', JOB .. id) == 0 then
  return nil
end

local kept = {
  'callback_url', 'callback_events', 'callback_outputs', 'callback_lane', 'callback_link',
  'callback_request', 'queue_timeout_ms', 'run_timeout_ms',
}
local values, more = redis.call('HMGET', JOB .. id, unpack(kept)), { 'retry_of', id }
for i, name in ipairs(kept) do
  if values[i] then
    more[#more + 1] = name
    more[#more + 1] = values[i]:gsub(id .. '$', new) -- the link is the new job's
  end
end
local job = redis.call('HMGET', JOB .. id, 'key', 'model', 'priority', 'tokens', 'about', 'request')
create(new, job[1], job[2], job[3], job[4], job[5], job[6], unpack(more))
redis.call('HSET', JOB .. id, 'redriven_as', new)
redis.call('ZREM', DEAD_LETTERS, id)
return { new, record(new), place(new) }
