-- Work: a job, or a row of a batch.

-- Whether this attempt still owns the work. An expired lease does until somebody takes it back.
local function owns(id, attempt)
  local batch, row = row_of(id)
  if not batch then
    return owns_job(id, attempt)
  end
  local held, _, worker = lease_of(batch, row)
  return held == attempt and worker ~= NOBODY
end

-- Whether a client wants running work to end.
local function is_cancelled(id)
  local batch = row_of(id)
  return redis.call('HEXISTS', batch and BATCH .. batch or JOB .. id, 'cancel_requested') == 1
end

-- running -> waiting again, no crash is counted; or -> how a client, or a window, has ended it
local function requeue(id)
  local batch, row = row_of(id)
  if not batch then
    return requeue_job(id)
  end
  local _, crashes = lease_of(batch, row)
  requeue_row(batch, row, crashes)
end

-- How often its worker fell silent. Of work that has not ended.
local function crashes_of(id)
  local batch, row = row_of(id)
  if not batch then
    return tonumber(redis.call('HGET', JOB .. id, 'crashes'))
  end
  local _, crashes = lease_of(batch, row)
  return tonumber(crashes)
end

-- After its worker crashed or fell silent: running -> waiting again, as a suspect; or -> failed, after
-- `most` times; or -> how a client, or a window, has ended it. Returns whether it failed. `error` is that
-- of a job; a row's is the code "attempts_exhausted".
local function count_crash(id, most, error)
  local batch, row = row_of(id)
  if not batch then
    local crashes = redis.call('HINCRBY', JOB .. id, 'crashes', 1)
    if crashes < most or redis.call('HEXISTS', JOB .. id, 'cancel_requested') == 1 then
      requeue_job(id)
      return false
    end
    finish(id, 'failed', 0, 'error', error)
    return true
  end
  local _, crashes = lease_of(batch, row)
  if crashes + 1 < most or redis.call('HEXISTS', BATCH .. batch, 'stopped') == 1 then
    requeue_row(batch, row, crashes + 1)
    return false
  end
  finish_row(batch, row, 'failed', 'attempts_exhausted ', 0, 0)
  return true
end

-- Ended -> (nothing)
local function forget(id, key)
  if id:match('^batch_') then
    forget_batch(id, key)
  else
    forget_job(id, key)
  end
end
