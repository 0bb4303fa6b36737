-- finish_rows(id, attempt, status, entry, prompt tokens, completion tokens, id, ...)
-- -> for each 1, or 0 if the attempt is stale
local done = {}
allow_when_full()

for i = 2, #ARGV, 6 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  local mine = row_of(id) and owns(id, attempt)
  if mine then
    local batch, row = row_of(id)
    finish_row(batch, row, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
  end
  done[#done + 1] = mine and 1 or 0
end
return done
