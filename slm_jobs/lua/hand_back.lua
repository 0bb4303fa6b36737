-- hand_back(most crashes, or '' if none is counted, error of a job that crashed so often as JSON, id,
--           attempt, id, attempt, ...) -> how many went back; stale ones are left alone
local max_crashes, exhausted_error = tonumber(ARGV[2]), ARGV[3]
allow_when_full()

local returned = 0
for i = 4, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  if owns(id, attempt) then
    if max_crashes then
      count_crash(id, max_crashes, exhausted_error)
    else
      requeue(id)
    end
    returned = returned + 1
  end
end
return returned
