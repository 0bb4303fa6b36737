-- claim(model, worker, lease in ms, whether it may be a job, most outputs of rows, whether the worker
--       holds nothing, whether Redis is nearly full, number of this claim, number of the worker's last
--       claim whose reply came; the numbers may be '')
-- -> {alone, works, specs}: works are {id, attempt, request, '', ms left to run or ''} of a job, or
-- {id, attempt, packed request, batch, ''} of rows; specs are {batch, what its rows have in common as
-- JSON, ...}
-- A job goes before rows, of which a nearly full Redis hands out none: their results would fill it. A
-- suspect goes only to a worker that holds nothing, which then runs it `alone`: one worker at a time
-- empties itself for them, and is given nothing else meanwhile. Where jobs wait, too, it takes these for
-- a while after each suspect, so that neither starves.
local model, worker, lease_ms = ARGV[2], ARGV[3], ARGV[4]
local jobs, room, empty = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7] == '1'
local nearly_full, claim, answered = ARGV[8] == '1', ARGV[9], ARGV[10]
local JOBS_MS = 1000 -- of a turn, between two suspects
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

local function reply(alone)
  if claim == '' then
    return { alone, works, specs }
  end
  local parts = { claim }
  for _, work in ipairs(works) do
    parts[#parts + 1] = work[1] .. ' ' .. work[2]
  end
  redis.call('SET', CLAIMED .. worker, table.concat(parts, ' '), 'PX', lease_ms)
  return { alone, works, specs }
end

-- What a lost reply held nobody has run: it goes back, and no crash is counted.
if claim ~= '' then
  local before = redis.call('GET', CLAIMED .. worker) or answered
  if before:match('^%d*') ~= answered then
    for id, attempt in before:gmatch(' (%S+) (%d+)') do
      if owns(id, attempt) then
        requeue(id)
      end
    end
  end
end

local mine, turn = model .. ' ' .. worker, redis.call('GET', TURN)
local suspects = redis.call('ZCARD', SUSPECTS .. model) > 0
if suspects and (not turn or turn == mine) then
  redis.call('SET', TURN, mine, 'PX', 2 * lease_ms)
  local before = redis.call('GET', TURN_JOBS) -- next: jobs come before another suspect; now: they come
  if jobs and (before == 'now' or (empty and before == 'next')) then
    local id = next_waiting(model)
    if id then
      if before == 'next' then
        redis.call('SET', TURN_JOBS, 'now', 'PX', JOBS_MS)
      end
      add_job(id)
      return reply(0)
    end
  end
  if not empty then
    return reply(0)
  end
  redis.call('SET', TURN_JOBS, 'next', 'PX', 2 * lease_ms)
  local id = redis.call('ZPOPMIN', SUSPECTS .. model)[1]
  local batch, row = row_of(id)
  if batch then
    add_row(batch, row)
  else
    add_job(id)
  end
  return reply(1)
elseif turn == mine then
  redis.call('DEL', TURN, TURN_JOBS)
elseif turn and turn:match('(%S+)$') == worker then -- for another model
  return reply(0)
end

local id = jobs and next_waiting(model)
if id then
  add_job(id)
  return reply(0)
end
while room > 0 and not nearly_full do
  local batch, row = next_share(model)
  if not batch then
    break
  end
  room = room - add_row(batch, row)
end
return reply(0)
