-- claim(model, worker, lease in ms, whether it may be a job, most outputs of rows, what may join the
--       worker's work ('' if it holds none), most crashes, whether Redis is nearly full, number of this
--       claim, number of the worker's last claim whose reply came; the numbers may be '')
-- -> {company, works, specs}: what may run beside the works, which are {id, attempt, request, '', ms left
-- to run or '', ms since it was made} of a job, or {id, attempt, packed request, batch, '', ''} of rows;
-- specs are {batch, what its rows have in common as JSON, ...}
-- A job goes before rows, of which a nearly full Redis hands out none: their results would fill it.
-- Suspects go only to a worker that holds nothing else: those that would survive another crash together,
-- the others each alone. A worker at a time empties itself for them; idle ones take them too, but for
-- one. Where jobs wait, too, it takes these for a while in between, so that neither starves.
local model, worker, lease_ms = ARGV[2], ARGV[3], ARGV[4]
local jobs, room, company = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7]
local max_crashes, nearly_full, claim, answered = tonumber(ARGV[8]), ARGV[9] == '1', ARGV[10], ARGV[11]
local ANY, AMONG_SUSPECTS, ALONE = 'any', 'suspects', 'none'
local JOBS_MS = 1000 -- of jobs between suspects, and of suspects where jobs wait
local REMEMBER_S = 3600 -- longer than a suspect runs
local LOOK_AT = 200 -- suspects
allow_when_full()

local works, specs, known = {}, {}, {}

local function add_row(batch, row)
  local id, attempt, packed, outputs = start_row(batch, row, worker, lease_ms)
  works[#works + 1] = { id, attempt, packed, batch, '', '' }
  if not known[batch] then
    known[batch] = true
    specs[#specs + 1] = batch
    specs[#specs + 1] = redis.call('HGET', BATCH .. batch, 'spec')
  end
  return outputs
end

local function add_job(id)
  local attempt, left_ms = start(id, worker, lease_ms)
  local job = redis.call('HMGET', JOB .. id, 'request', 'created_at')
  works[#works + 1] = { id, attempt, job[1], '', left_ms or '', now() - job[2] }
end

local function reply(beside)
  if claim ~= '' then
    remember_claim(CLAIMED .. worker, claim, works, lease_ms)
  end
  return { beside, works, specs }
end

local function give_back(id, attempt) -- no crash is counted
  if owns(id, attempt) then
    requeue(id)
  end
end

if claim ~= '' and is_late_claim(CLAIMED .. worker, claim, answered, give_back) then
  return { ANY, works, specs }
end

if not jobs and room == 0 then
  return reply(ANY)
end

-- A job, or rows; returns what may run beside them. Who holds nothing is apart from then on, until it
-- claims again holding none of them.
local function take_suspects()
  local began = redis.call('ZSCORE', APART, worker)
  if company == '' then
    redis.call('ZADD', APART, now(), worker)
  elseif began and now() - began >= JOBS_MS and redis.call('ZCARD', WAITING .. model) > 0 then
    return AMONG_SUSPECTS
  end
  local doomed -- the first that another crash would end: a mate of it may do that
  for _, id in ipairs(redis.call('ZRANGE', SUSPECTS .. model, 0, LOOK_AT - 1)) do
    local batch, row = row_of(id)
    local crashes = crashes_of(id)
    if not crashes then
      redis.call('ZREM', SUSPECTS .. model, id) -- only if somebody deleted a record by hand
    elseif crashes + 1 >= max_crashes then
      doomed = doomed or id
    elseif batch and room > 0 and not nearly_full then
      redis.call('ZREM', SUSPECTS .. model, id)
      room = room - add_row(batch, row)
    elseif not batch and jobs and #works == 0 then
      redis.call('ZREM', SUSPECTS .. model, id)
      add_job(id)
      return AMONG_SUSPECTS
    end
  end
  if #works > 0 or not doomed or company ~= '' then
    return AMONG_SUSPECTS
  end
  redis.call('ZREM', SUSPECTS .. model, doomed)
  local batch, row = row_of(doomed)
  if batch then
    add_row(batch, row)
  else
    add_job(doomed)
  end
  return ALONE
end

local mine, turn = model .. ' ' .. worker, redis.call('GET', TURN)
local suspects = redis.call('ZCARD', SUSPECTS .. model) > 0
if turn == mine and not suspects then
  redis.call('DEL', TURN, TURN_JOBS)
  turn = nil
end
if company == AMONG_SUSPECTS then
  return reply(take_suspects())
end
redis.call('ZREM', APART, worker)
if suspects and (not turn or turn == mine) then
  redis.call('SET', TURN, mine, 'PX', 2 * lease_ms)
  local before = redis.call('GET', TURN_JOBS) -- next: jobs come before more suspects; now: they come
  if jobs and (before == 'now' or (company == '' and before == 'next')) then
    local id = next_waiting(model)
    if id then
      if before == 'next' then
        redis.call('SET', TURN_JOBS, 'now', 'PX', JOBS_MS)
      end
      add_job(id)
      return reply(ANY)
    end
  end
  if company ~= '' then
    return reply(ANY)
  end
  redis.call('SET', TURN_JOBS, 'next', 'EX', REMEMBER_S)
  return reply(take_suspects())
elseif turn and turn:match('(%S+)$') == worker then -- for another model
  if redis.call('ZCARD', SUSPECTS .. turn:match('^(%S+)')) > 0 then
    return reply(ANY)
  end
  redis.call('DEL', TURN, TURN_JOBS)
end

local id = jobs and next_waiting(model)
if id then
  add_job(id)
  return reply(ANY)
end
if suspects and company == '' and redis.call('ZCARD', APART) < redis.call('ZCARD', WORKERS) - 1 then
  return reply(take_suspects()) -- another worker is there for jobs
end
while room > 0 and not nearly_full do
  local batch, row = next_share(model)
  if not batch then
    break
  end
  room = room - add_row(batch, row)
end
return reply(ANY)
