-- claim(model, worker, lease in ms, whether it may be a job, most outputs of rows, whether the worker
--       holds nothing)
-- -> {alone, works, specs}: works are {id, attempt, request, '', ms left to run or ''} of a job, or
-- {id, attempt, packed request, batch, ''} of rows; specs are {batch, what its rows have in common as JSON, ...}
-- A job goes before rows. A suspect goes before all, and only to a worker that holds nothing, which then
-- runs it `alone`: one worker at a time empties itself for them, and is given nothing else meanwhile.
local model, worker, lease_ms = ARGV[2], ARGV[3], ARGV[4]
local jobs, room, empty = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7] == '1'
allow_when_full()

local works, specs, known = {}, {}, {}

local function add_row(batch, row)
  local id, attempt, packed, outputs = start_row(batch, row, worker, lease_ms)
  works[#works + 1] = { id, attempt, packed, batch, '' }
  if not known[batch] then
    known[batch] = true
    specs[#specs + 1] = batch
    specs[#specs + 1] = redis.call('HGET', BATCH .. batch, 'spec')
  end
  return outputs
end

local function add_job(id)
  local attempt, left_ms = start(id, worker, lease_ms)
  works[#works + 1] = { id, attempt, redis.call('HGET', JOB .. id, 'request'), '', left_ms or '' }
end

local mine, turn = model .. ' ' .. worker, redis.call('GET', TURN)
local suspects = redis.call('ZCARD', SUSPECTS .. model) > 0
if suspects and (not turn or turn == mine) then
  redis.call('SET', TURN, mine, 'PX', 2 * lease_ms)
  if not empty then
    return { 0, {}, {} }
  end
  local id = redis.call('ZPOPMIN', SUSPECTS .. model)[1]
  local batch, row = row_of(id)
  if batch then
    add_row(batch, row)
  else
    add_job(id)
  end
  return { 1, works, specs }
elseif turn == mine then
  redis.call('DEL', TURN)
elseif turn and turn:match('(%S+)$') == worker then -- for another model
  return { 0, {}, {} }
end

local id = jobs and next_waiting(model)
if id then
  add_job(id)
  return { 0, works, specs }
end
while room > 0 do
  local batch, row = next_share(model)
  if not batch then
    break
  end
  room = room - add_row(batch, row)
end
return { 0, works, specs }
