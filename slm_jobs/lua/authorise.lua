-- authorise(key, digest) -> the key's fields and values, or nil
if not authorised(ARGV[2], ARGV[3]) then
  return nil
end
return redis.call('HGETALL', KEY .. ARGV[2])
