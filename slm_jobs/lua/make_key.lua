-- make_key(key, field, value, ...) -> the key's fields and values; one that exists is replaced
local key, time = ARGV[2], now()
redis.call('DEL', KEY .. key)
redis.call('HSET', KEY .. key, 'created_at', time, unpack(ARGV, 3))
redis.call('ZADD', KEYS_MADE, time, key)
return redis.call('HGETALL', KEY .. key)
