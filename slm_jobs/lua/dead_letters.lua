-- dead_letters(place of the first, most) -> {place of the next or '', id, the record, id, ...}, the latest
-- first
local first, most = tonumber(ARGV[2]), tonumber(ARGV[3])

local ids = redis.call('ZREVRANGE', DEAD_LETTERS, first, first + most)
local page = { ids[most + 1] and first + most or '' }
for i = 1, math.min(#ids, most) do
  page[#page + 1] = ids[i]
  page[#page + 1] = record(ids[i])
end
return page
