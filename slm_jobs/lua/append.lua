-- append(id, attempt, fingerprint, output, start, end, text, output, start, end, text, ...)
-- -> how many tokens of each output the stream holds, as output and count; nil if the attempt is stale
-- The stream is a list of "<output> <end> <text>", and "restart" where the text before is void.
local id, attempt, fingerprint = ARGV[2], ARGV[3], ARGV[4]
allow_when_full()

if not owns(id, attempt) then
  return nil
end
local whose = redis.call('HGET', SENT .. id, 'fingerprint')
if whose and whose ~= fingerprint then
  redis.call('RPUSH', STREAM .. id, 'restart')
  redis.call('DEL', SENT .. id)
end
redis.call('HSET', SENT .. id, 'fingerprint', fingerprint)
for i = 5, #ARGV, 4 do
  local output, from, to, text = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if from == (redis.call('HGET', SENT .. id, output) or '0') then
    redis.call('RPUSH', STREAM .. id, output .. ' ' .. to .. ' ' .. text)
    redis.call('HSET', SENT .. id, output, to)
  end
end
announce(id, 'tokens')
local sent = {}
for _, value in ipairs(redis.call('HGETALL', SENT .. id)) do
  sent[#sent + 1] = value
end
return sent
