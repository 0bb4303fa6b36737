"""How much of the service's work one Redis can do: the calls of a job's life, and of rows' lives,
are recorded once as the real store makes them, then sent again with other ids over many
connections, with as little Python between them as there can be, until Redis has no time left.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, cast

import redis
import uvloop

from benchmarks.device import STORIES
from slm_core import Tokenizer
from slm_jobs import keys
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import BatchDraft, BatchRow, RowEnd
from slm_jobs.schemas import GenerationParams, JobSpec, Output, Usage
from slm_jobs.store import JobStore
from slm_jobs.tickets import queue_name

MODEL = "replayed"
TOKENS = 200  # of every output
PROMPT = "Once upon a time there was a little fox who lived in the old forest near the river"
WORKER = "worker-0000"
_CLAIM, _ANSWERED = 7_777_771, 7_777_770  # of as many digits as all that follow
_JOB_ID = "job_" + "0" * 26
_JOB = re.compile(rb"job_[0-9A-Z]{26}")
_ROW = re.compile(rb"batch_[0-9A-Z]{26}:\d+")
# What Celery does with a ticket, but for its index of them.
_TAKE = [["RPOP", queue_name(MODEL)], ["MULTI"]]
_END = b"+PONG\r\n"  # comes after a reply, when PING goes after its command

Play = Generator[bytes, bytes, None]  # commands out, replies in; endless


class Recorder(redis.Redis):
    """Remembers what scripts were called with, as it goes over the wire."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[Any, ...]] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] == "EVALSHA":
            self.calls.append(args)
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def last(self, about: str) -> tuple[Any, ...]:
        """The last of the calls that have this among their arguments."""
        return [call for call in self.calls if about in call][-1]


def recording(url: str) -> Recorder:
    """Of a Redis that has forgotten all claims, so that their numbers may begin anew."""
    pool = redis.ConnectionPool.from_url(url, decode_responses=True)
    recorder = Recorder(connection_pool=pool)
    for place in recorder.keys(keys.CLAIMED + "*"):
        recorder.delete(place)
    return recorder


def job_lives(url: str, token: str, seconds: float, connections: int = 50) -> dict[str, Any]:
    """Jobs a second that Redis sees made, claimed, completed and read twice, each with a ticket."""
    with recording(url) as recorder:
        store = JobStore(recorder)
        spec = JobSpec(model=MODEL, prompts=[PROMPT], max_tokens=TOKENS)
        proof = KeyProof.of(token)
        store.create(spec, job_id=_JOB_ID, owner=proof, tokens=TOKENS + len(PROMPT) // 4)
        create = pack(recorder.last(_JOB_ID))
        [work] = store.claim_next(MODEL, worker=WORKER, claim=_CLAIM, answered=_ANSWERED)
        claim = pack(recorder.last(WORKER))
        store.complete(work, *outcome(), fingerprint="int8/cpu")
        finish = pack(recorder.last(_JOB_ID))
        store.get(_JOB_ID)
        read = pack(recorder.last(_JOB_ID))
        ids = itertools.count(1)

        def live(connection: int) -> Play:
            tag = f"ticket-{connection}"
            take = [*_TAKE, ["HSET", "slm:celery:unacked", tag, "t" * 700], ["EXEC"]]
            give = [["MULTI"], ["HDEL", "slm:celery:unacked", tag], ["EXEC"]]
            for claimed in _claims(claim, connection):
                yield create.replace(_JOB_ID.encode(), b"job_%026d" % next(ids))
                yield b"".join(map(pack, take))
                reply = yield claimed
                if not (found := _JOB.search(reply)):
                    raise RuntimeError(f"no job was claimed: {reply[:500]!r}")
                yield finish.replace(_JOB_ID.encode(), found[0])
                yield b"".join(map(pack, give))
                yield read.replace(_JOB_ID.encode(), found[0])
                yield read.replace(_JOB_ID.encode(), found[0])

        return _drive(recorder, live, seconds, connections, calls=7)


def row_lives(
    url: str, token: str, seconds: float, at_once: int, connections: int = 50
) -> dict[str, Any]:
    """Rows a second that Redis sees claimed and finished, so many in a call."""
    with recording(url) as recorder:
        store = JobStore(recorder)
        proof = KeyProof.of(token)
        params = GenerationParams(max_tokens=TOKENS)
        batch = store.batches.begin(BatchDraft(MODEL, params), owner=proof).batch_id
        for first in range(0, round(12_000 * seconds), 500):
            rows = (
                BatchRow(f"row-{first + i}", first + i + 1, [PROMPT], {}, 220, 1)
                for i in range(500)
            )
            store.batches.add_rows(batch, list(rows))
        store.batches.commit(batch, "digest")
        [work] = store.claim_next(
            MODEL, worker=WORKER, jobs=False, rows=1, claim=_CLAIM, answered=_ANSWERED
        )
        claim = list(recorder.last(WORKER))
        claim[claim.index(1, claim.index(WORKER))] = at_once  # the most outputs
        store.batches.finish([RowEnd(work, "succeeded", *outcome(), "int8/cpu")])
        finish = recorder.last(work.id)
        head, rest = finish[:4], finish[5:]  # without the row's id

        def live(connection: int) -> Play:
            for claimed in _claims(pack(claim), connection):
                reply = yield claimed
                if not (rows := _ROW.findall(reply)):
                    raise RuntimeError("the batch has too few rows for a Redis as fast as this")
                parts = (part for row in rows for part in (row, *rest))
                yield pack([*head, *parts])

        told = _drive(recorder, live, seconds, connections, calls=2)
        store.batches.cancel(batch)
        told["per_second"] = round(told["per_second"] * at_once, 1)
        told["redis_us"] = round(told["redis_us"] / at_once, 1)
        return told | {"at_once": at_once}


def address(server: redis.Redis) -> tuple[str, int]:
    known = server.get_connection_kwargs()
    return known["host"], known["port"]


def pack(command: Iterable[Any]) -> bytes:
    """A command as it goes over the wire."""
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)])


def _claims(claim: bytes, connection: int) -> Iterator[bytes]:
    """The claims of a worker of its own."""
    claim = claim.replace(WORKER.encode(), b"worker-%04d" % (connection + 1))
    for number in itertools.count(1_000_000):
        yield claim.replace(b"%d" % _CLAIM, b"%d" % (number + 1)).replace(
            b"%d" % _ANSWERED, b"%d" % number
        )


def outcome() -> tuple[list[Output], Usage]:
    """Of a sequence of `TOKENS` tokens, which tells a story."""
    tokenizer = Tokenizer()
    story = tokenizer.decode(tokenizer.encode(STORIES.read_text("utf-8"))[:TOKENS])
    usage = Usage(prompt_tokens=20, completion_tokens=TOKENS, total_tokens=TOKENS + 20)
    return [Output(index=0, text=story, finish_reason="length")], usage


class _Connection(asyncio.Protocol):
    """Plays a script, one command at a time."""

    def __init__(self, play: Play, until: float) -> None:
        self.lives = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._play, self._until = play, until
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send(next(self._play))

    def _send(self, command: bytes) -> None:
        self._transport.write(command + b"PING\r\n")

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(_END):
            return
        reply, self._received = self._received, b""
        if reply.startswith(b"-"):
            self.done.set_exception(RuntimeError(reply[:500].decode(errors="replace")))
            self._transport.close()
        elif time.monotonic() < self._until:
            self.lives += 1
            self._send(self._play.send(reply))
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("Redis closed the connection"))


def _drive(
    server: redis.Redis,
    live: Callable[[int], Play],
    seconds: float,
    connections: int,
    calls: int,
) -> dict[str, Any]:
    """`calls` commands are a life."""
    host, port = address(server)

    async def run() -> int:
        loop, until = asyncio.get_running_loop(), time.monotonic() + seconds
        made = [
            (await loop.create_connection(partial(_Connection, live(i), until), host, port))[1]
            for i in range(connections)
        ]
        await asyncio.gather(*(each.done for each in made))
        return sum(each.lives for each in made)

    before, began = spent(server), time.monotonic()
    lives = uvloop.run(run()) / calls
    took = time.monotonic() - began
    used = spent(server) - before
    return {
        "per_second": round(lives / took, 1),
        "redis_share": round(used / took, 3),
        "redis_us": round(1e6 * used / lives, 1),
        "connections": connections,
    }


def spent(server: redis.Redis) -> float:
    """CPU seconds of Redis's one thread that serves."""
    info = cast("dict[str, float]", server.info("cpu"))
    names = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    if names[0] not in info:  # before Redis 7: of all threads, the others do little
        names = ("used_cpu_user", "used_cpu_sys")
    return sum(info[name] for name in names)
