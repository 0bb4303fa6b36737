"""Every key and channel of ours in Redis; nothing else spells one. The scripts get the same names
(`scripts`).

    slm:job:<id>            hash    a job's record; it expires only after the job ended
    slm:stream:<id>         list    what the job's outputs said so far, see `lua/append.lua`
    slm:sent:<id>           hash    output -> its tokens in the stream; whose fingerprint
    slm:waiting:<model>     zset    queued job ids; score: place in line, see `wait_in_line` in Lua
    slm:leases              zset    running job ids; score: ms at which the lease expires
    slm:ended               zset    "<key> <job id>" of ended jobs; score: ms at which to forget
    slm:models              set     models for which something may wait
    slm:running             hash    model -> how many of its jobs run
    slm:queued_tokens       hash    model -> tokens that its queued jobs may take
    slm:sequence            int     counts jobs; a job's number is its age
    slm:tickets             int     counts tickets; makes their ids unique
    slm:workers             zset    worker ids; score: ms until which the worker counts as alive
    slm:worker_info         hash    worker id -> its `WorkerInfo` as JSON
    slm:janitor             string  held by the one that sweeps
    slm:serve:<model>       list    tickets, read by Celery; named in `tickets`
    slm:nothing                     never exists; deleting it is a harmless write

    slm:key:<key>           hash    an API key: its limits, and a digest of its secret
    slm:keys                zset    the API keys; score: ms at which it was made
    slm:usage:<key>         hash    how far the key has used up its limits, see `meter` in Lua
    slm:in_flight:<key>     zset    its jobs that have not ended; score: ms at which to look again
    slm:jobs_of:<key>       zset    its jobs; score: us at which it was made
    slm:idempotency:<key>:<digest>  string  "<digest of the body> <job id>" of an Idempotency-Key

    slm:events:<id>         channel something changed about a job
    slm:commands:<worker>   channel "<job id> <attempt>" to cancel

Redis Cluster is not supported: scripts compute keys from these prefixes.
"""

from __future__ import annotations

JOB = "slm:job:"
STREAM = "slm:stream:"
SENT = "slm:sent:"
WAITING = "slm:waiting:"
LEASES = "slm:leases"
ENDED = "slm:ended"
MODELS = "slm:models"
RUNNING = "slm:running"
QUEUED_TOKENS = "slm:queued_tokens"
SEQUENCE = "slm:sequence"
TICKETS = "slm:tickets"
WORKERS = "slm:workers"
WORKER_INFO = "slm:worker_info"
JANITOR = "slm:janitor"
NOTHING = "slm:nothing"

KEY = "slm:key:"
KEYS_MADE = "slm:keys"
USAGE = "slm:usage:"
IN_FLIGHT = "slm:in_flight:"
JOBS_OF = "slm:jobs_of:"
IDEMPOTENCY = "slm:idempotency:"

EVENTS = "slm:events:"
COMMANDS = "slm:commands:"


def job(job_id: str) -> str:
    return JOB + job_id


def waiting(model: str) -> str:
    return WAITING + model
