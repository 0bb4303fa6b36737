-- What every script begins with, in this order: base, limits, outbox, jobs, rows, work. Each change of a job's or a
-- row's state is one function here; the scripts only decide which of them happens. The names in
-- capitals are declared in front of this file by scripts.py. Times are integer milliseconds by
-- Redis's clock. This part: the clock, tickets and workers.

-- ARGV[1] is always the clock's offset in ms: tests move time with it, otherwise it is 0.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
end

-- A full Redis refuses the first write of a script, and none that follow one it let through.
-- Deleting is always let through, so this lets a script finish: a full Redis takes no new jobs and
-- hands out no rows, but what runs keeps its lease, and ends.
local function allow_when_full()
  redis.call('DEL', NOTHING)
end

-- How many tickets could be of use: one for each job, as a thread runs one, and for rows one for each
-- worker, as a worker has one thread that runs them all.
local function tickets_wanted(model)
  local wanted = redis.call('ZCARD', WAITING .. model) + redis.call('ZCARD', SUSPECTS .. model)
  if redis.call('EXISTS', SHARES .. model) == 1 then
    wanted = wanted + math.max(redis.call('ZCARD', WORKERS), 1)
  end
  return math.min(wanted, TICKETS_MAX)
end

-- Leaves a ticket unless enough of them stand. Returns whether it did.
local function push_ticket(model)
  if redis.call('LLEN', QUEUE .. model) >= tickets_wanted(model) then
    return false
  end
  local blanks = { model = model, id = 'ticket-' .. redis.call('INCR', TICKETS) }
  local ticket = TICKET:gsub('{{(%w+)}}', blanks)
  redis.call('LPUSH', QUEUE .. model, ticket) -- kombu takes from the right
  return true
end

-- A key of a million entries takes Redis a second to free, in which it answers nobody. What is large is
-- put aside under a name that counts, and the janitor empties it bit by bit.
local DISCARD_AT, DISCARD_LATER = 10000, 3600 -- entries; seconds

local function discard(key)
  local kind = redis.call('TYPE', key).ok
  local size = kind == 'hash' and redis.call('HLEN', key) or kind == 'list' and redis.call('LLEN', key) or 0
  if size < DISCARD_AT then
    redis.call('UNLINK', key)
    return
  end
  local aside = DISCARDED_KEY .. redis.call('INCR', SEQUENCE)
  redis.call('RENAME', key, aside)
  redis.call('PERSIST', aside)
  redis.call('RPUSH', DISCARDED, aside)
end

-- Frees up to so many entries of what was put aside.
local function free_discarded(most)
  local key = redis.call('LINDEX', DISCARDED, 0)
  if not key then
    return
  end
  if redis.call('TYPE', key).ok == 'list' then
    redis.call('LTRIM', key, most, -1)
  else
    local found, names = redis.call('HSCAN', key, 0, 'COUNT', most)[2], {}
    for i = 1, #found, 2 do
      names[#names + 1] = found[i]
    end
    for i = 1, #names, 1000 do -- unpack takes so many
      redis.call('HDEL', key, unpack(names, i, math.min(i + 999, #names)))
    end
  end
  if redis.call('EXISTS', key) == 0 then
    redis.call('LPOP', DISCARDED)
  end
end

-- Claims of a process are numbered. What the last one was given stands under `place`, until the leases
-- end: "<claim> <id> <attempt> <id> <attempt> ...".
local function remember_claim(place, claim, given, lease_ms)
  local parts = { claim }
  for _, work in ipairs(given) do
    parts[#parts + 1] = work[1] .. ' ' .. work[2]
  end
  redis.call('SET', place, table.concat(parts, ' '), 'PX', lease_ms)
end

-- If the reply of the last claim was lost, nobody has begun with what it was given: each goes back by
-- `give_back(id, attempt)`. Returns whether this claim comes after a later one, so that nobody waits for it.
local function is_late_claim(place, claim, answered, give_back)
  local last, given = (redis.call('GET', place) or answered):match('^(%d*)(.*)$')
  if (tonumber(last) or 0) >= tonumber(claim) then
    return true
  end
  if last ~= answered then
    for id, attempt in given:gmatch(' (%S+) (%d+)') do
      give_back(id, attempt)
    end
  end
  return false
end

local function forget_worker(worker)
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', WORKER_INFO, worker)
  redis.call('ZREM', APART, worker)
  if (redis.call('GET', TURN) or ''):match('(%S+)$') == worker then
    redis.call('DEL', TURN, TURN_JOBS)
  end
end
