-- forget_worker(worker)
forget_worker(ARGV[2])
