-- batch_read(batch) -> {now, the record}
return { now(), batch_record(ARGV[2]) }
