-- A batch's life, and that of its rows. A row is a number from 0; its id is "<batch>:<row>". Those from
-- the batch's `next` on have never been claimed, others that have not ended are in LEASED, and wait
-- again in BACK or among the suspects where no worker is named there.

local NOBODY = '-'
local RATE_MS = 10000 -- over which the rates are averaged

local function row_id(batch, row)
  return batch .. ':' .. row
end

-- The batch and the row that an id names; nil if it is a job's.
local function row_of(id)
  return id:match('^(batch_%w+):(%d+)$')
end

-- Jobs that wait, and crashed a worker. Rows stand among the suspects, too; all of them are few.
local function suspected_jobs(model)
  local jobs = {}
  for _, id in ipairs(redis.call('ZRANGE', SUSPECTS .. model, 0, -1)) do
    if not row_of(id) then
      jobs[#jobs + 1] = id
    end
  end
  return jobs
end

-- The attempt, crashes and worker of a row; nil if it was never claimed, or has ended.
local function lease_of(batch, row)
  local lease = redis.call('HGET', LEASED .. batch, row)
  if lease then
    return lease:match('^(%d+) (%d+) (%S+)$')
  end
end

local function set_lease(batch, row, attempt, crashes, worker)
  redis.call('HSET', LEASED .. batch, row, attempt .. ' ' .. crashes .. ' ' .. worker)
end

-- The tokens, outputs and packed request of a row that has not succeeded.
local function request_of(batch, row)
  return redis.call('HGET', ROWS .. batch, row):match('^(%d+) (%d+) (.*)$')
end

-- Counts rows of a batch in among the waiting ones, with the tokens that they may take, or out.
local function count_waiting(batch, rows, tokens)
  local owner = redis.call('HMGET', BATCH .. batch, 'model', 'key')
  redis.call('HINCRBY', BATCH .. batch, 'pending', rows)
  redis.call('HINCRBY', BATCH .. batch, 'waiting_tokens', tokens)
  if redis.call('HINCRBY', ROWS_WAITING, owner[1], rows) > 0 then
    redis.call('HINCRBY', ROW_TOKENS_WAITING, owner[1], tokens)
  else -- nothing that an earlier version had not counted in stays behind
    redis.call('HDEL', ROW_TOKENS_WAITING, owner[1])
  end
  redis.call('HINCRBY', USAGE .. owner[2], 'batch_rows', rows)
  redis.call('HINCRBY', USAGE .. owner[2], 'batch_tokens', tokens)
end

-- A batch's record: one value for each of BATCH_FIELDS.
local function batch_record(batch)
  return redis.call('HMGET', BATCH .. batch, unpack(BATCH_FIELDS))
end

---- Telling -----------------------------------------------------------------------------------

local function tell_batch(batch, event, number)
  tell(BATCH, BATCH_FIELDS, batch, event, number)
end

-- Each tenth of the rows that has ended, but for the last, is told once.
local function tell_progress(batch)
  local stand = redis.call('HMGET', BATCH .. batch, 'callback_events', 'total', 'pending', 'running', 'told')
  if not stand[1] or not stand[1]:find('progress', 1, true) then
    return
  end
  local tenth = math.floor(10 * (stand[2] - stand[3] - stand[4]) / stand[2])
  if tenth > tonumber(stand[5] or 0) and tenth < 10 then
    redis.call('HSET', BATCH .. batch, 'told', tenth)
    tell_batch(batch, 'progress', tenth)
  end
end

---- Fair share ----------------------------------------------------------------------------------

-- Start-time fair queueing (Goyal, Vin and Cheng, 1996), between keys and then between a key's
-- batches: each has been served so many tokens, and the least served goes next. Who joins stands
-- level with the least served, so that waiting saves nothing up.
local function join_line(line, member)
  if not redis.call('ZSCORE', line, member) then
    local least = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2] or 0
    redis.call('ZADD', line, least, member)
  end
end

-- The batch has rows that may be claimed.
local function join_shares(batch)
  local owner = redis.call('HMGET', BATCH .. batch, 'model', 'key')
  local model, key = owner[1], owner[2]
  join_line(SHARES .. model .. ':' .. key, batch)
  join_line(SHARES .. model, key)
  redis.call('SADD', MODELS, model)
  push_ticket(model)
end

local function leave_shares(model, key, batch)
  redis.call('ZREM', SHARES .. model .. ':' .. key, batch)
  if redis.call('EXISTS', SHARES .. model .. ':' .. key) == 0 then
    redis.call('ZREM', SHARES .. model, key)
  end
end

-- Takes the next row out of its batch; nil if there is none that was not claimed, or no such batch.
local function next_row(batch)
  local back = redis.call('ZPOPMIN', BACK .. batch)[1]
  if back then
    return back
  end
  local stand = redis.call('HMGET', BATCH .. batch, 'next', 'rows')
  if stand[1] and tonumber(stand[1]) < tonumber(stand[2]) then
    redis.call('HINCRBY', BATCH .. batch, 'next', 1)
    return stand[1]
  end
end

-- Takes the next row of the model, which its key and its batch are then served. nil if none waits. A
-- batch leaves only here, once it is its turn: who left when it ran dry, and joined again level with
-- the least served, would be served twice.
local function next_share(model)
  while true do
    local key = redis.call('ZRANGE', SHARES .. model, 0, 0)[1]
    if not key then
      return nil
    end
    local batch = redis.call('ZRANGE', SHARES .. model .. ':' .. key, 0, 0)[1]
    local row = next_row(batch)
    if row then
      local tokens = request_of(batch, row)
      redis.call('ZINCRBY', SHARES .. model, tokens, key)
      redis.call('ZINCRBY', SHARES .. model .. ':' .. key, tokens, batch)
      return batch, row
    end
    leave_shares(model, key, batch)
  end
end

---- The end of a batch --------------------------------------------------------------------------

-- validating | running -> a terminal state
local function end_batch(batch, status)
  local time, key = now(), redis.call('HGET', BATCH .. batch, 'key')
  redis.call('HSET', BATCH .. batch, 'status', status, 'finished_at', time)
  redis.call('ZREM', WINDOWS, batch)
  redis.call('ZREM', UPLOADS, batch)
  redis.call('UNLINK', LEASED .. batch, BACK .. batch)
  redis.call('EXPIRE', BATCH .. batch, BATCH_TTL)
  for _, prefix in ipairs({ ROWS, RESULTS, FAILURES }) do
    redis.call('EXPIRE', prefix .. batch, BATCH_TTL + DISCARD_LATER) -- unless the janitor comes first
  end
  redis.call('ZADD', ENDED, time + BATCH_TTL * 1000, key .. ' ' .. batch)
  announce(batch, status)
  tell_batch(batch, status)
end

local function end_if_done(batch)
  local stand = redis.call('HMGET', BATCH .. batch, 'status', 'pending', 'running', 'stopped')
  if stand[1] == 'running' and stand[2] == '0' and stand[3] == '0' then
    end_batch(batch, stand[4] or 'completed')
  end
end

-- Ends what waits of a running batch as `how`, "cancelled" or "expired"; running rows run on. Rows
-- that were never claimed are known by their numbers, the others are told one by one.
local function stop_batch(batch, how)
  if redis.call('HSETNX', BATCH .. batch, 'stopped', how) == 0 then
    return
  end
  local stand = redis.call('HMGET', BATCH .. batch, 'pending', 'waiting_tokens', 'model', 'key')
  local leases, time = redis.call('HGETALL', LEASED .. batch), now()
  for i = 1, #leases, 2 do
    local row = leases[i]
    if leases[i + 1]:match('(%S+)$') == NOBODY then
      redis.call('HDEL', LEASED .. batch, row)
      redis.call('ZREM', SUSPECTS .. stand[3], row_id(batch, row))
      redis.call('RPUSH', FAILURES .. batch, time .. ' ' .. row .. ' ' .. how .. ' ')
    end
  end
  redis.call('UNLINK', BACK .. batch)
  leave_shares(stand[3], stand[4], batch)
  count_waiting(batch, -stand[1] + 0, -stand[2] + 0) -- Redis knows no -0
  redis.call('HINCRBY', BATCH .. batch, how, stand[1])
  redis.call('ZREM', WINDOWS, batch)
  announce(batch, 'stopped')
  end_if_done(batch)
end

-- validating -> (nothing), or its record without rows: its charges go back.
local function drop_rows(batch)
  local stand = redis.call('HMGET', BATCH .. batch, 'pending', 'waiting_tokens')
  count_waiting(batch, -stand[1] + 0, -stand[2] + 0)
  redis.call('HSET', BATCH .. batch, 'rows', 0, 'total', 0, 'failed', 0)
  discard(ROWS .. batch)
  discard(FAILURES .. batch)
  discard(CUSTOM_IDS .. batch)
  redis.call('ZREM', UPLOADS, batch)
end

-- All that is known about a batch goes.
local function forget_batch(batch, key)
  redis.call('UNLINK', BATCH .. batch)
  for _, prefix in ipairs({ ROWS, RESULTS, FAILURES }) do
    discard(prefix .. batch)
  end
  redis.call('ZREM', BATCHES_OF .. key, batch)
  redis.call('ZREM', ENDED, key .. ' ' .. batch)
end

local function abandon_batch(batch)
  local record = redis.call('HMGET', BATCH .. batch, 'key', 'reservation')
  drop_rows(batch)
  if record[2] then
    redis.call('DEL', record[2])
  end
  forget_batch(batch, record[1])
end

---- A row's life --------------------------------------------------------------------------------

-- waiting -> running. The caller has taken it out of the line. Returns its id, the attempt, and its
-- packed request, and how many outputs it has.
local function start_row(batch, row, worker, lease_ms)
  local attempt, crashes = lease_of(batch, row)
  local tokens, outputs, packed = request_of(batch, row)
  local time, id = now(), row_id(batch, row)
  attempt = (attempt or 0) + 1
  set_lease(batch, row, attempt, crashes or 0, worker)
  redis.call('ZADD', LEASES, time + lease_ms, id)
  count_waiting(batch, -1, -tokens)
  redis.call('HINCRBY', BATCH .. batch, 'running', 1)
  redis.call('HINCRBY', ROWS_RUNNING, redis.call('HGET', BATCH .. batch, 'model'), 1)
  if redis.call('HSETNX', BATCH .. batch, 'started_at', time) == 1 then
    announce(batch, 'running')
    tell_batch(batch, 'running')
  end
  return id, attempt, packed, tonumber(outputs)
end

local function stop_row(batch, row)
  redis.call('ZREM', LEASES, row_id(batch, row))
  redis.call('HINCRBY', BATCH .. batch, 'running', -1)
  redis.call('HINCRBY', ROWS_RUNNING, redis.call('HGET', BATCH .. batch, 'model'), -1)
end

-- Rows and tokens that fade with time; what is read of them, and when, makes rates.
local function measure(batch, tokens, time)
  local rate = redis.call('HMGET', BATCH .. batch, 'rate_at', 'rate_rows', 'rate_tokens')
  local fading = rate[1] and math.exp((rate[1] - time) / RATE_MS) or 0
  redis.call('HSET', BATCH .. batch,
    'rate_at', time,
    'rate_rows', string.format('%.4f', (rate[2] or 0) * fading + 1),
    'rate_tokens', string.format('%.3f', (rate[3] or 0) * fading + tokens))
end

-- running -> a terminal state: `entry` goes to its list, with the time and the row in front. Tokens are
-- those of its prompts, and those generated.
local function finish_row(batch, row, status, entry, prompt_tokens, completion_tokens)
  local time = now()
  stop_row(batch, row)
  redis.call('HDEL', LEASED .. batch, row)
  redis.call('HINCRBY', BATCH .. batch, status, 1)
  redis.call('HINCRBY', BATCH .. batch, 'prompt_tokens', prompt_tokens)
  redis.call('HINCRBY', BATCH .. batch, 'completion_tokens', completion_tokens)
  measure(batch, completion_tokens, time)
  local list = FAILURES -- what did not succeed may be wanted again, and keeps its request
  if status == 'succeeded' then
    list = RESULTS
    redis.call('HDEL', ROWS .. batch, row)
  end
  redis.call('RPUSH', list .. batch, time .. ' ' .. row .. ' ' .. entry)
  announce(batch, 'row')
  tell_progress(batch)
  end_if_done(batch)
end

-- running -> waiting again; or -> how its batch was stopped meanwhile
local function requeue_row(batch, row, crashes)
  local stopped = redis.call('HGET', BATCH .. batch, 'stopped')
  if stopped then
    return finish_row(batch, row, stopped, stopped .. ' ', 0, 0)
  end
  local attempt = lease_of(batch, row)
  stop_row(batch, row)
  set_lease(batch, row, attempt, crashes, NOBODY)
  count_waiting(batch, 1, request_of(batch, row))
  if tonumber(crashes) > 0 then
    local model = redis.call('HGET', BATCH .. batch, 'model')
    redis.call('ZADD', SUSPECTS .. model, now(), row_id(batch, row))
    redis.call('SADD', MODELS, model)
    push_ticket(model)
  else
    redis.call('ZADD', BACK .. batch, row, row)
    join_shares(batch)
  end
end
