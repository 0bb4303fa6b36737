-- list(key, below, at least, most, scanned at most, status, status, ...)
-- -> {score to go on below, or '' at the end; id, record; id, record; ...}, newest first
-- Scores are us at which a job was made. Where statuses are given, a page may hold few jobs, or none,
-- and yet not be the last.
local key, below, at_least = ARGV[2], ARGV[3], ARGV[4]
local most, scanned_most = tonumber(ARGV[5]), tonumber(ARGV[6])
local wanted = {}
for i = 7, #ARGV do
  wanted[ARGV[i]] = true
end

local scanned = redis.call(
  'ZREVRANGEBYSCORE', JOBS_OF .. key, below, at_least, 'WITHSCORES', 'LIMIT', 0, scanned_most)
local page = { '' }
for i = 1, #scanned, 2 do
  local id, score = scanned[i], scanned[i + 1]
  local status = redis.call('HGET', JOB .. id, 'status')
  if status and (#ARGV < 7 or wanted[status]) then
    page[#page + 1] = id
    page[#page + 1] = record(id)
  end
  if #page > 2 * most or (i + 1 == #scanned and #scanned == 2 * scanned_most) then
    page[1] = score
    break
  end
end
return page
