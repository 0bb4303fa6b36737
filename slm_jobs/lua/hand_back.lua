-- hand_back(id, attempt, id, attempt, ...) -> how many went back; stale ones are left alone
allow_when_full()

local returned = 0
for i = 2, #ARGV, 2 do
  local id, attempt = ARGV[i], ARGV[i + 1]
  if owns(id, attempt) then
    requeue(id)
    returned = returned + 1
  end
end
return returned
