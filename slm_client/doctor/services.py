"""Redis, the port, and the service itself if it runs."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from slm_client import preflight
from slm_client.client import Client
from slm_client.credentials import choose_key
from slm_client.doctor.finding import Finding, fault, last_line, ok, warning
from slm_client.doctor.listeners import listener
from slm_client.errors import ApiError, PortTaken, ServiceUnreachable, StartError
from slm_client.redis_server import find_redis_server
from slm_client.siblings import module, run

_PATIENCE = 5.0  # seconds for one answer
_LOOK_SECONDS = 60.0
_OLDEST_REDIS = (6, 2)
_CLOCKS = 5.0  # seconds that they may differ; Date has whole ones


def redis(url: str | None) -> Iterator[Finding]:
    """The one at `url`; None: the one that `slm up` would start."""
    if url is None:
        yield from _redis_server()
        return
    shown = preflight.without_password(url)
    preflight.check_redis(url)  # says in a sentence what is wrong with an address
    env = {"SLM_REDIS_URL": url}
    done = run(module("slm_jobs.redis_checks"), env=env, capture=True, timeout=_LOOK_SECONDS)
    if done.returncode:
        mend = "Is it a Redis, and are name and password in the address right?"
        yield fault("redis", f"{shown}: {last_line(done.stderr)}", mend)
        return
    found = json.loads(done.stdout)
    yield ok("redis", f"{found['version'] or 'a version it does not tell'} at {shown}.")
    for hint in found["hints"]:
        make = {"ok": ok, "warning": warning}[hint["level"]]
        yield make("redis", f"{hint['says']}.")
    if abs(found["clock_seconds"]) > _CLOCKS:
        says = f"its clock is {found['clock_seconds']:+.0f} s from this one."
        yield warning("clock", says, "`sudo timedatectl set-ntp true` on both machines.")


def _redis_server() -> Iterator[Finding]:
    try:
        path = find_redis_server()
    except StartError as error:
        yield fault("redis", str(error), "`sudo apt-get install redis-server`")
        return
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    version = re.search(r"v=((\d+)\.(\d+)[\d.]*)", told.stdout)
    if not version:
        yield fault("redis", f"{path} does not run: {last_line(told.stderr)}", "Install it anew.")
    elif (int(version[2]), int(version[3])) < _OLDEST_REDIS:
        yield fault("redis", f"{path} is {version[1]}.", "Take 6.2 or newer.")
    else:
        yield ok("redis", f"{version[1]} at {path}, which `slm up` starts.")


def service(url: str, api_key: str | None, data_dir: Path) -> Iterator[Finding]:
    """Whether one runs at `url`, and how it is."""
    key = choose_key(api_key, url, data_dir)
    with Client(url, key or "", timeout=_PATIENCE, retry_for=0) as client:
        try:
            answer = httpx.get(f"{client.base_url}/healthz", timeout=_PATIENCE, trust_env=False)
        except httpx.TransportError as error:
            yield ok("service", f"none answers at {client.base_url} ({error or 'no answer'}).")
            return
        if not _is_ours(answer):
            says = f"what answers at {client.base_url} is not this service."
            yield warning("service", says, "Say where it is with --url, or `slm up --port 8001`.")
            return
        yield from _versions(client.base_url)
        yield from _clock(answer)
        if why := client.why_not_ready():
            mend = (
                "The log of the worker says why: `tail .slm/logs/worker-1.log`, or its container's."
            )
            yield fault("service", f"it runs at {client.base_url}, but is not ready: {why}", mend)
        else:
            yield ok("service", f"it is ready at {client.base_url}.")
        try:
            client.queue()
        except (ApiError, ServiceUnreachable) as error:
            yield warning("service", str(error))
        else:
            yield ok("service", "it knows the API key.")


def _is_ours(answer: httpx.Response) -> bool:
    try:
        return answer.status_code == 200 and answer.json() == {"status": "ok"}
    except ValueError:
        return False


def _versions(url: str) -> Iterator[Finding]:
    """Of the api and of this program."""
    try:
        document = httpx.get(f"{url}/openapi.json", timeout=_PATIENCE, trust_env=False).json()
        theirs = str(document["info"]["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        yield warning("service", "it does not tell its version at /openapi.json.")
        return
    ours = metadata.version("slm-jobs")
    if theirs != ours:
        says = f"it is version {theirs}, and this program {ours}."
        yield warning("service", says, "Start the service anew, or update the older one.")


def _clock(answer: httpx.Response) -> Iterator[Finding]:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return
    if abs(theirs - time.time()) > _CLOCKS:
        says = f"the service's clock is {theirs - time.time():+.0f} s from this one."
        yield warning("clock", says, "`sudo timedatectl set-ntp true` on both machines.")


def port(number: int, url: str) -> Iterator[Finding]:
    """Whether `slm up` can listen on it."""
    try:
        preflight.check_port("127.0.0.1", number)
    except PortTaken:
        who = listener(number)
        by = f" by {who}" if who else ""
        if _is_service_at(number, url):
            yield ok("port", f"{number} is taken{by}: the service that runs.")
        else:
            mend = f"Stop it, or `slm up --port {number + 1 if number < 65535 else 8001}`."
            yield fault("port", f"{number} is taken{by}.", mend)
    except StartError as error:
        yield fault("port", str(error))
    else:
        yield ok("port", f"{number} is free.")


def _is_service_at(number: int, url: str) -> bool:
    ours = {f"http://127.0.0.1:{number}"}
    if urlsplit(url).port == number:
        ours.add(url.rstrip("/"))
    for each in ours:
        try:
            if _is_ours(httpx.get(f"{each}/healthz", timeout=_PATIENCE, trust_env=False)):
                return True
        except httpx.HTTPError:
            continue
    return False
