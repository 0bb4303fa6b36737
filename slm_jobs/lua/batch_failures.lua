-- batch_failures(batch, after, most) -> {entry, stored row or nil; entry, ...} from the one with number
-- after + 1 on. Once a batch was stopped and has ended, rows that were never claimed follow.
local batch, after, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local record = redis.call(
  'HMGET', BATCH .. batch, 'status', 'stopped', 'next', 'rows', 'finished_at')
local found = {}
local function add(entry, row)
  found[#found + 1] = entry
  found[#found + 1] = row and redis.call('HGET', ROWS .. batch, row) or false
end

local entries = redis.call('LRANGE', FAILURES .. batch, after, after + most - 1)
for _, entry in ipairs(entries) do
  add(entry, entry:match('^%d+ (%d+) '))
end
if record[2] and record[1] == record[2] then
  local told = redis.call('LLEN', FAILURES .. batch)
  local first = record[3] + math.max(after - told, 0)
  for row = first, math.min(first + most - #entries, record[4]) - 1 do
    add(record[5] .. ' ' .. row .. ' ' .. record[2] .. ' ', row)
  end
end
return found
