"""The whole service on one machine: Redis, an API key, the api, callbacks, workers. Knows how each
is started and which environment variables configure it, and nothing of what they do.

<data-dir>/
├── lock         held while it runs; also by Redis, so that no second one opens the same files
├── redis/       jobs (append-only file)
├── scratch/     the same for a stack with `keep_data=False`; emptied at each start
├── api_key      of an admin; made at the first start, and known to nobody else
├── …            models, see `manifests.py`
└── logs/        <part>.log of this run, <part>.log.1 of the run before
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from slm_client import manifests, preflight
from slm_client.child import Part
from slm_client.client import Client
from slm_client.cores import cores
from slm_client.credentials import key_file, read_key
from slm_client.errors import StartError
from slm_client.redis_server import RedisServer, answers, free_port
from slm_client.siblings import ROOT, module
from slm_client.supervisor import Supervisor

_API_SHUTDOWN_SECONDS = 5  # for open connections; then uvicorn closes them
_DEFAULT_DRAIN_SECONDS = 20.0  # of the worker, unless SLM_DRAIN_SECONDS says otherwise
_AFTER_DRAIN_SECONDS = 10.0  # to hand jobs back and to leave
_DEFAULT_CALLBACK_SECONDS = (
    20.0  # of an attempt, unless SLM_CALLBACK_TIMEOUT_SECONDS says otherwise
)
_AFTER_CALLBACK_SECONDS = 5.0  # to write how it went


@dataclass(frozen=True)
class StackOptions:
    """`port` 0: any free one. `redis_url` None: a Redis of our own. `model`: a checkpoint folder;
    None: the shipped models and those of the data folder. `slots`: sequences that a worker decodes
    at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = Path(".slm")
    workers: int = 1
    redis_url: str | None = None
    model: Path | None = None
    slots: int | None = None
    keep_data: bool = True


@dataclass(frozen=True)
class Plan:
    """What `StackOptions` come to on this machine. Paths are absolute."""

    options: StackOptions
    url: str
    redis_url: str
    redis_dir: Path | None  # None: somebody else's Redis
    key_file: Path
    log_dir: Path
    threads: str  # of each worker
    env: dict[str, str]
    lock_fd: int


def _ignore(event: str) -> None:
    pass


class Stack:
    """Use it as a context manager: entered, it is ready; left, everything has stopped.

    `on_event` gets lines for people, from another thread. `parts` makes the processes to run.
    """

    def __init__(
        self,
        options: StackOptions,
        *,
        on_event: Callable[[str], None] = _ignore,
        parts: Callable[[Plan], list[list[Part]]] | None = None,
    ) -> None:
        self._options = options
        self._on_event = on_event
        self._parts = parts or service_parts
        self._lock: preflight.Lock | None = None
        self._supervisor: Supervisor | None = None
        self._client: Client | None = None
        self._plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """Raises RuntimeError before `start`."""
        if self._plan is None:
            raise RuntimeError("the stack has not been started")
        return self._plan

    @property
    def url(self) -> str:
        return self.plan.url

    @property
    def api_key(self) -> str:
        """An admin's. Raises StartError if it is gone, and BadInput if it cannot be read."""
        if key := read_key(self.plan.options.data_dir):
            return key
        raise StartError(f"the API key in {self.plan.key_file} is gone; start again for a new one.")

    def start(self) -> None:
        """Returns when a job can be served. Raises StartError or BadInput; nothing runs then."""
        try:
            self._lock = preflight.Lock(self._options.data_dir)
            self._plan = make_plan(self._options, self._lock.fd)
            self._client = Client(self._plan.url, api_key="")  # to ask whether it is ready
            self._supervisor = Supervisor(
                self._parts(self._plan),
                log_dir=self._plan.log_dir,
                cwd=ROOT,
                ready=self._client.ready,
                on_event=self._on_event,
            )
            self._supervisor.start()
        except BaseException:
            self.stop()
            raise

    def ready(self) -> bool:
        """Whether a job can be served now."""
        return self._client is not None and self._client.ready()

    def supervise(self) -> None:
        """Blocks until `stop` is called elsewhere. Raises StartError if a part cannot be kept
        running."""
        if self._supervisor:
            self._supervisor.wait()

    def pids(self) -> dict[str, int]:
        """The processes that live now, by name."""
        return self._supervisor.pids() if self._supervisor else {}

    def stop(self) -> None:
        """Workers first (they drain), then callbacks (the last ones go out), then the api, then
        Redis. Safe to repeat.

        A KeyboardInterrupt meanwhile kills everything at once, and is raised again.
        """
        try:
            if self._supervisor:
                self._supervisor.stop()
        finally:
            if self._client:
                self._client.close()
            if self._lock:
                self._lock.release()
            self._supervisor = self._client = self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def make_plan(options: StackOptions, lock_fd: int) -> Plan:
    """Checks what can be checked and prepares the data folder, whose lock is held.

    Raises StartError or BadInput.
    """
    data_dir = options.data_dir.resolve()
    options = replace(
        options, data_dir=data_dir, port=options.port or preflight.free_port_on(options.host)
    )
    preflight.check_port(options.host, options.port)
    log_dir = data_dir / "logs"
    log_dir.mkdir(exist_ok=True)
    redis_dir = None
    if options.redis_url:
        preflight.check_redis(options.redis_url)
    else:
        redis_dir = data_dir / ("redis" if options.keep_data else "scratch")
        if not options.keep_data:
            shutil.rmtree(redis_dir, ignore_errors=True)
        redis_dir.mkdir(exist_ok=True)
    redis_url = options.redis_url or f"redis://127.0.0.1:{free_port()}/0"
    threads = os.environ.get("SLM_THREADS") or str(max(1, cores() // options.workers))
    env = {
        "PYTHONUNBUFFERED": "1",  # else the last log lines of a killed process are lost
        "SLM_REDIS_URL": redis_url,
        "SLM_THREADS": threads,
    }
    if options.slots:
        env["SLM_SLOTS"] = str(options.slots)
    if not options.keep_data:
        env["SLM_DRAIN_SECONDS"] = "0"  # nobody will come back for the jobs
    if options.model:
        env["SLM_MODELS_FILE"] = str(manifests.write_only(options.model, data_dir))
    elif models := manifests.models_file(data_dir):
        env["SLM_MODELS_FILE"] = models
    if not os.environ.get("SLM_ALLOWED_HOSTS"):
        env["SLM_ALLOWED_HOSTS"] = preflight.allowed_hosts(options.host)
    return Plan(
        options=options,
        url=preflight.local_url(options.host, options.port),
        redis_url=redis_url,
        redis_dir=redis_dir,
        key_file=key_file(data_dir),
        log_dir=log_dir,
        threads=threads,
        env=env,
        lock_fd=lock_fd,
    )


def service_parts(plan: Plan) -> list[list[Part]]:
    """Redis, then the key, then the api, then callbacks, then the workers."""
    options = plan.options
    key = Part(
        "api-key",
        module("slm_jobs.bootstrap_key", "--file", str(plan.key_file)),
        plan.env,
        once=True,
    )
    api = Part(
        "api",
        # No access log: people poll, and it would drown everything else.
        module(
            "uvicorn",
            *f"api.app:app --host {options.host} --port {options.port} --no-access-log "
            f"--timeout-graceful-shutdown {_API_SHUTDOWN_SECONDS} "
            # streams stay open; above it comes 503. httptools would keep headers without end.
            "--http h11 --limit-concurrency 2048".split(),
        ),
        plan.env,
        grace=2.0 * _API_SHUTDOWN_SECONDS,
    )
    callbacks = Part(
        "callbacks",
        module("worker.callbacks"),
        _with_metrics(plan, 0),
        grace=_seconds(plan, "SLM_CALLBACK_TIMEOUT_SECONDS", _DEFAULT_CALLBACK_SECONDS)
        + _AFTER_CALLBACK_SECONDS,
    )
    workers = [_worker(plan, number) for number in range(1, options.workers + 1)]
    return [*_redis(plan), [key], [api], [callbacks], workers]


def _redis(plan: Plan) -> Sequence[list[Part]]:
    if plan.redis_dir is None:
        return []
    port = int(plan.redis_url.rpartition(":")[2].partition("/")[0])
    command = RedisServer(plan.redis_dir, port).command()
    # It holds the lock too: where nothing ties it to us (not Linux), it may outlive us.
    return [[Part("redis", command, ready=lambda: answers(port), pass_fds=[plan.lock_fd])]]


def _worker(plan: Plan, number: int) -> Part:
    return Part(
        f"worker-{number}",
        module(
            "celery",
            # The port tells stacks apart that share a Redis on one machine.
            *f"-A worker.app worker --hostname slm-{plan.options.port}-{number}@%h "
            "--without-gossip --without-mingle".split(),
        ),
        _with_metrics(plan, number),
        grace=_seconds(plan, "SLM_DRAIN_SECONDS", _DEFAULT_DRAIN_SECONDS) + _AFTER_DRAIN_SECONDS,
    )


def _with_metrics(plan: Plan, offset: int) -> dict[str, str]:
    """Where SLM_METRICS_PORT is set, each part gets a port of its own, from that one on."""
    port = os.environ.get("SLM_METRICS_PORT", "")
    if not port.isdecimal():  # if it is wrong, the part will say so
        return plan.env
    return {**plan.env, "SLM_METRICS_PORT": str(int(port) + offset)}


def _seconds(plan: Plan, name: str, default: float) -> float:
    """Of a setting that the parts read for themselves."""
    given = plan.env.get(name) or os.environ.get(name)
    try:
        return float(given or default)
    except ValueError:
        return default  # the part will say what is wrong with it
