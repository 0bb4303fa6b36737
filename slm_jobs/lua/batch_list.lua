-- batch_list(key, below, most) -> {now, score to go on below, or '' at the end; batch, record; ...}
-- The newest first; scores are us at which a batch was made.
local key, below, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local page = { now(), '' }
local found = redis.call(
  'ZREVRANGEBYSCORE', BATCHES_OF .. key, below, '-inf', 'WITHSCORES', 'LIMIT', 0, most + 1)
for i = 1, math.min(#found, 2 * most), 2 do
  page[#page + 1] = found[i]
  page[#page + 1] = batch_record(found[i])
end
if #found > 2 * most then
  page[2] = found[2 * most]
end
return page
