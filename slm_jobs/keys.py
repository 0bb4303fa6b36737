"""Every key of ours in Redis; nothing else spells one. The scripts get the same names (`scripts`).

    slm:job:<id>          hash    a job's record; it expires only after the job ended
    slm:waiting:<model>   zset    queued job ids; score: place in line, see `wait_in_line` in Lua
    slm:leases            zset    running job ids; score: ms at which the lease expires
    slm:models            set     models for which something may wait
    slm:sequence          int     counts jobs; a job's number is its age
    slm:tickets           int     counts tickets; makes their ids unique
    slm:workers           zset    worker ids; score: ms until which the worker counts as alive
    slm:worker_info       hash    worker id -> its `WorkerInfo` as JSON
    slm:janitor           string  held by the one that sweeps
    slm:serve:<model>     list    tickets, read by Celery; named in `tickets`
    slm:nothing                   never exists; deleting it is a harmless write

Redis Cluster is not supported: scripts compute keys from these prefixes.
"""

from __future__ import annotations

JOB = "slm:job:"
WAITING = "slm:waiting:"
LEASES = "slm:leases"
MODELS = "slm:models"
SEQUENCE = "slm:sequence"
TICKETS = "slm:tickets"
WORKERS = "slm:workers"
WORKER_INFO = "slm:worker_info"
JANITOR = "slm:janitor"
NOTHING = "slm:nothing"


def job(job_id: str) -> str:
    return JOB + job_id


def waiting(model: str) -> str:
    return WAITING + model
