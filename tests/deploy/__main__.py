"""python -m tests.deploy [--build] [--tool docker|podman|buildah] [-- arguments of the build]

Builds the images and has them work, on this machine's loopback: jobs, callbacks, health, a drain.
Ports 8000, 7860, 9100 and 9101 must be free. A Redis is started from PATH.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from slm_client import Client
from slm_client.redis_server import RedisServer, free_port
from tests.deploy.containers import DOCKERFILES, Container, Tool, find_tool

_READY_SECONDS = 180.0
_GRACE = 30.0  # seconds, as in docker-compose.yml


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def check(what: str, good: bool, why: object = "") -> None:
    if not good:
        raise SystemExit(f"FAILED  {what}: {why}")
    say(f"ok      {what}")


def until(what: str, good: Callable[[], object], seconds: float = _READY_SECONDS) -> None:
    began = time.monotonic()
    while not good():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"FAILED  {what}: not within {seconds:.0f} s")
        time.sleep(0.1)
    say(f"ok      {what}, after {time.monotonic() - began:.1f} s")


@contextmanager
def running(tool: Tool, image: str, env: dict[str, str], *command: str) -> Iterator[Container]:
    container = tool.start(image, env, list(command))
    try:
        yield container
    finally:
        container.kill()


@contextmanager
def receiver() -> Iterator[tuple[str, list[bytes]]]:
    """An address that takes callbacks, and their bodies."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", bodies
        server.shutdown()


def look_inside(container: Container, image: str) -> None:
    user = container.run(["id", "-u"]).stdout.strip()
    check(f"{image} runs as user {user}", user not in ("", "0"))
    has_torch = container.run(["python", "-c", "import torch"]).returncode == 0
    check(f"{image} has {'' if has_torch else 'no '}torch", has_torch == (image != "slm-api"))


def healthy(container: Container, command: list[str], name: str) -> None:
    until(f"{name} is healthy", lambda: container.run(command).returncode == 0, 60)


def smoke_parts(tool: Tool, folder: Path) -> None:
    """api, worker and callbacks, each in its container, with a Redis of this machine."""
    redis = RedisServer(folder, free_port())
    redis.start()
    env = {"SLM_REDIS_URL": redis.url, "SLM_LOG_FORMAT": "json"}
    elsewhere = {**env, "SLM_METRICS_PORT": "9101"}
    module = ("python", "-m", "worker.callbacks")
    with ExitStack() as stack:
        stack.callback(redis.stop)
        api = stack.enter_context(running(tool, "slm-api", env))
        callbacks = stack.enter_context(running(tool, "slm-api", elsewhere, *module))
        worker = stack.enter_context(running(tool, "slm-worker", env))
        look_inside(api, "slm-api")
        look_inside(worker, "slm-worker")
        make = "python -m slm_jobs.bootstrap_key --file /tmp/api_key && cat /tmp/api_key"
        key = api.run(["sh", "-c", make])
        check("the first key is made", key.returncode == 0, key.stderr)
        client = stack.enter_context(Client("http://127.0.0.1:8000", key.stdout.strip()))
        until("the service is ready", client.ready)
        url, bodies = stack.enter_context(receiver())
        job = client.generate("Once upon a time", max_tokens=40, seed=7, callback_url=url)
        check(f"a job: {job.text!r}", bool(job.text))
        until("its callback comes", lambda: bodies, 30)
        healthy(api, tool.health("slm-api"), "slm-api")
        health = tool.health("slm-worker")
        healthy(worker, health, "slm-worker")
        healthy(callbacks, [word.replace("9100", "9101") for word in health], "callbacks")
        drain(client, worker)
        callbacks.stop(_GRACE)
        api.stop(_GRACE)
        say("ok      callbacks and slm-api end in time")


def drain(client: Client, worker: Container) -> None:
    """SIGTERM while a job runs: it ends first, or goes back to those that wait."""
    jobs = [client.submit("Once", max_tokens=400, ignore_eos=True) for _ in range(32)]
    until("jobs run", lambda: any(client.get(job.id).status == "running" for job in jobs), 30)
    code = worker.stop(_GRACE)
    statuses = sorted({client.get(job.id).status for job in jobs})
    check(f"a worker drains: its jobs are {', '.join(statuses)}", code == 0, code)
    check("none is lost", set(statuses) <= {"succeeded", "queued"})


def smoke_space(tool: Tool) -> None:
    """Everything in one container."""
    with running(tool, "slm-space", {}) as space:
        look_inside(space, "slm-space")
        with Client("http://127.0.0.1:7860", "") as client:
            until("the space is ready", client.ready)
        key = space.run(["cat", "/data/api_key"]).stdout.strip()
        with Client("http://127.0.0.1:7860", key) as client:
            text = client.generate("Once upon a time", max_tokens=40, seed=7).text
        check(f"a job: {text!r}", bool(text))
        healthy(space, tool.health("slm-space"), "slm-space")
        check("the space ends", space.stop(_GRACE) == 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.deploy", description=__doc__)
    parser.add_argument(
        "--tool", choices=["docker", "podman", "buildah"], help="default: the first"
    )
    parser.add_argument("--build", action="store_true", help="build the images first")
    parser.add_argument("--only", choices=["parts", "space"], help="default: both")
    parser.add_argument("build_arguments", nargs="*", help="such as --build-arg TORCH_INDEX=...")
    given = parser.parse_args()
    tool = find_tool(given.tool)
    images = [i for i in DOCKERFILES if given.only in (None, "space" if "space" in i else "parts")]
    if given.build:
        for image in images:
            began = time.monotonic()
            tool.build(image, given.build_arguments)
            say(f"ok      {image} is built, in {time.monotonic() - began:.0f} s")
    for image in images:
        say(f"ok      {image} has {tool.size(image) / 1e6:,.0f} MB")
    if given.only != "space":
        with tempfile.TemporaryDirectory() as folder:
            smoke_parts(tool, Path(folder))
    if given.only != "parts":
        smoke_space(tool)
    say("Everything works.")


if __name__ == "__main__":
    main()
