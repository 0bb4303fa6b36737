"""Every key and channel of ours in Redis; nothing else spells one. The scripts get the same names
(`scripts`).

    slm:job:<id>            hash    a job's record; it expires only after the job ended
    slm:stream:<id>         list    what the job's outputs said so far, see `lua/append.lua`
    slm:sent:<id>           hash    output -> its tokens in the stream; whose fingerprint
    slm:waiting:<model>     zset    queued job ids; score: place in line, see `wait_in_line` in Lua
    slm:leases              zset    running job ids; score: ms at which the lease expires
    slm:queue_deadlines     zset    queued job ids; score: ms at which one expires
    slm:dead_letters        zset    failed job ids; score: ms at which
    slm:ended               zset    "<key> <job id>" of ended jobs; score: ms at which to forget
    slm:models              set     models for which something may wait
    slm:running             hash    model -> how many of its jobs run
    slm:queued_tokens       hash    model -> tokens that its queued jobs may take
    slm:expired             hash    model -> how many of its jobs have expired, ever
    slm:sequence            int     counts jobs; a job's number is its age
    slm:tickets             int     counts tickets; makes their ids unique
    slm:workers             zset    worker ids; score: ms until which the worker counts as alive
    slm:worker_info         hash    worker id -> its `WorkerInfo` as JSON
    slm:janitor             string  held by the one that sweeps
    slm:swept_at            int     ms by Redis's own clock at which one has swept
    slm:quiet               string  while it is there no lease is taken back, see `sweep.lua`
    slm:serve:<model>       list    tickets, read by Celery; named in `tickets`
    slm:discarded           list    keys that the janitor empties bit by bit
    slm:discarded:<n>               one of these
    slm:nothing                     never exists; deleting it is a harmless write

    slm:key:<key>           hash    an API key: its limits, and a digest of its secret
    slm:keys                zset    the API keys; score: ms at which it was made
    slm:usage:<key>         hash    how far the key has used up its limits, see `meter` in Lua
    slm:in_flight:<key>     zset    its jobs that have not ended; score: ms at which to look again
    slm:jobs_of:<key>       zset    its jobs; score: us at which it was made
    slm:idempotency:<key>:<digest>  string  "<digest of the body> <job id>" of an Idempotency-Key

    slm:suspects:<model>    zset    ids of waiting work that crashed a worker; score: place in line
    slm:turn                string  "<model> <worker>": who empties itself to run suspects
    slm:turn_jobs           string  whether jobs come before its next suspect, see `claim.lua`
    slm:apart               zset    workers that run suspects; score: ms since when
    slm:claimed:<worker>    string  "<claim> <id> <attempt> ...": what its last claim was given

    slm:batch:<id>          hash    a batch's record; it expires only after the batch ended
    slm:rows:<id>           hash    row -> "<tokens> <outputs> <packed>"; not of rows that succeeded
    slm:leased:<id>         hash    row -> "<attempt> <crashes> <worker>" of rows that were claimed
                                    and have not ended; worker -: it waits again
    slm:back:<id>           zset    rows that wait again; score: the row
    slm:results:<id>        list    "<ms> <row> <packed>" of rows that succeeded
    slm:failures:<id>       list    "<ms> <row> <code> <packed>" of rows that ended otherwise
    slm:custom_ids:<id>     hash    custom_id -> line, while rows come in
    slm:shares:<model>      zset    API keys with rows waiting; score: tokens served, see `rows.lua`
    slm:shares:<model>:<key> zset   their batches; score likewise
    slm:rows_waiting        hash    model -> rows that wait
    slm:row_tokens_waiting  hash    model -> tokens that its waiting rows may take
    slm:rows_running        hash    model -> rows that run
    slm:batches_of:<key>    zset    a key's batches; score: us at which it was made
    slm:uploads             zset    batches whose rows come in; score: ms at which that is given up
    slm:windows             zset    batches; score: ms at which rows that have not started expire

    slm:file:<id>           hash    what is known about a file; it expires with the file
    slm:file_parts:<id>     list    its content in deflated parts
    slm:file_upload:<id>    list    those of one that is on its way in; they expire soon
    slm:files_of:<key>      zset    a key's files; score: ms at which it was made

    slm:delivery:<id>       hash    a callback: what to tell whom, with a copy of the record
    slm:attempts:<id>       list    what came of trying, as JSON
    slm:deliveries_of:<id>  list    deliveries of a job or batch
    slm:due:<lane>          zset    pending deliveries of a key to a host; score: ms at which one is
                                    due, or the claim of whoever is at it ends
    slm:lanes:<key>         zset    its lanes in which something is pending; score: ms of the first
    slm:telling             zset    keys that have such lanes; score: ms of the first
    slm:pending_callbacks   hash    key -> how many of its deliveries are pending
    slm:claimed_callbacks:<process> string  "<claim> <id> <its claim> ...": what its last was given
    slm:undelivered:<key>   zset    deliveries that were given up; score: ms at which
    slm:callback_secrets:<key> list "<secret> <ms at which it expires>" of what a key's callbacks
                                    are signed with, the newest first; no ms: the current one

    slm:events:<id>         channel something changed about a job or a batch
    slm:commands:<worker>   channel "<job id> <attempt>" to cancel
    slm:callbacks_due       channel a delivery is due

Redis Cluster is not supported: scripts compute keys from these prefixes.
"""

from __future__ import annotations

JOB = "slm:job:"
STREAM = "slm:stream:"
SENT = "slm:sent:"
WAITING = "slm:waiting:"
LEASES = "slm:leases"
QUEUE_DEADLINES = "slm:queue_deadlines"
DEAD_LETTERS = "slm:dead_letters"
ENDED = "slm:ended"
MODELS = "slm:models"
RUNNING = "slm:running"
QUEUED_TOKENS = "slm:queued_tokens"
EXPIRED = "slm:expired"
SEQUENCE = "slm:sequence"
TICKETS = "slm:tickets"
WORKERS = "slm:workers"
WORKER_INFO = "slm:worker_info"
JANITOR = "slm:janitor"
SWEPT_AT = "slm:swept_at"
QUIET = "slm:quiet"
DISCARDED = "slm:discarded"
DISCARDED_KEY = "slm:discarded:"
NOTHING = "slm:nothing"

KEY = "slm:key:"
KEYS_MADE = "slm:keys"
USAGE = "slm:usage:"
IN_FLIGHT = "slm:in_flight:"
JOBS_OF = "slm:jobs_of:"
IDEMPOTENCY = "slm:idempotency:"

SUSPECTS = "slm:suspects:"
TURN = "slm:turn"
TURN_JOBS = "slm:turn_jobs"
APART = "slm:apart"
CLAIMED = "slm:claimed:"

BATCH = "slm:batch:"
ROWS = "slm:rows:"
LEASED = "slm:leased:"
BACK = "slm:back:"
RESULTS = "slm:results:"
FAILURES = "slm:failures:"
CUSTOM_IDS = "slm:custom_ids:"
SHARES = "slm:shares:"
ROWS_WAITING = "slm:rows_waiting"
ROW_TOKENS_WAITING = "slm:row_tokens_waiting"
ROWS_RUNNING = "slm:rows_running"
BATCHES_OF = "slm:batches_of:"
UPLOADS = "slm:uploads"
WINDOWS = "slm:windows"

FILE = "slm:file:"
FILE_PARTS = "slm:file_parts:"
FILE_UPLOAD = "slm:file_upload:"
FILES_OF = "slm:files_of:"

DELIVERY = "slm:delivery:"
ATTEMPTS = "slm:attempts:"
DELIVERIES_OF = "slm:deliveries_of:"
DUE = "slm:due:"
LANES = "slm:lanes:"
TELLING = "slm:telling"
PENDING_CALLBACKS = "slm:pending_callbacks"
CLAIMED_CALLBACKS = "slm:claimed_callbacks:"
UNDELIVERED = "slm:undelivered:"
CALLBACK_SECRETS = "slm:callback_secrets:"

EVENTS = "slm:events:"
COMMANDS = "slm:commands:"
CALLBACKS_DUE = "slm:callbacks_due"


def job(job_id: str) -> str:
    return JOB + job_id


def waiting(model: str) -> str:
    return WAITING + model
