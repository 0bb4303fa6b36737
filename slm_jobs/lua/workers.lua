-- workers() -> the info of each that is alive, as JSON
local alive = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. now(), '+inf')
if #alive == 0 then
  return {}
end
return redis.call('HMGET', WORKER_INFO, unpack(alive))
