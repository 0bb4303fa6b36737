-- dead_letter(id) -> {the record, its request, queue timeout, run timeout (ms)}; nil if it is none
local id = ARGV[2]

if not redis.call('ZSCORE', DEAD_LETTERS, id) or redis.call('EXISTS', JOB .. id) == 0 then
  return nil
end
local values = redis.call('HMGET', JOB .. id, 'request', 'queue_timeout_ms', 'run_timeout_ms')
return { record(id), unpack(values) }
