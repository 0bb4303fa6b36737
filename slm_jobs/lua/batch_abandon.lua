-- batch_abandon(batch)
-- A batch whose rows come in is as if it had never begun; others are left alone.
allow_when_full()
if redis.call('HGET', BATCH .. ARGV[2], 'status') == 'validating' then
  abandon_batch(ARGV[2])
end
