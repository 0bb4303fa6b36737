-- queue(model, model, ...)
-- -> for each: {jobs waiting, their tokens, jobs running, rows waiting, rows running}
local found = {}
for i = 2, #ARGV do
  found[#found + 1] = {
    redis.call('ZCARD', WAITING .. ARGV[i]) + #suspected_jobs(ARGV[i]),
    tonumber(redis.call('HGET', QUEUED_TOKENS, ARGV[i]) or 0),
    tonumber(redis.call('HGET', RUNNING, ARGV[i]) or 0),
    tonumber(redis.call('HGET', ROWS_WAITING, ARGV[i]) or 0),
    tonumber(redis.call('HGET', ROWS_RUNNING, ARGV[i]) or 0),
  }
end
return found
