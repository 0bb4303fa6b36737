-- callback_read(id, ...) -> for each {its fields, its attempts, when it is due in ms}; the fields are
-- empty if there is none
local found = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local lane = redis.call('HGET', DELIVERY .. id, 'lane')
  found[#found + 1] = {
    redis.call('HGETALL', DELIVERY .. id),
    redis.call('LRANGE', ATTEMPTS .. id, 0, -1),
    lane and redis.call('ZSCORE', DUE .. lane, id) or '',
  }
end
return found
