-- read(id) -> {the record as fields and values, its place}
return { redis.call('HGETALL', JOB .. ARGV[2]), place(ARGV[2]) }
