-- read(id) -> {the record, its place}
return { record(ARGV[2]), place(ARGV[2]) }
