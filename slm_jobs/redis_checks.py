"""What every process says at its start about a Redis that may lose jobs, and what to do about it.

Knows only what Redis tells: where CONFIG or INFO is forbidden, as with many managed services, there
is nothing to say. `python -m slm_jobs.redis_checks` prints the same about SLM_REDIS_URL, as JSON.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis import exceptions

from slm_jobs.connection import connect
from slm_jobs.errors import SettingsError
from slm_jobs.settings import Settings

log = logging.getLogger(__name__)

OLDEST = (6, 2)
_Hint = tuple[int, str]  # a level of logging, and the line


def check_redis(settings: Settings) -> None:
    """Logs what should be changed. Takes `redis_timeout_seconds` at most, whatever Redis does.

    Raises SettingsError where it is a cluster, and for nothing else.
    """
    found: list[SettingsError] = []

    def look() -> None:
        try:
            for level, line in _hints(*_ask(settings)):
                log.log(level, line)
        except SettingsError as error:
            found.append(error)
        except (exceptions.RedisError, OSError) as error:
            log.warning("Redis cannot be looked at now, and is not checked: %s", error)
        except Exception:
            log.exception("the checks of Redis failed")

    thread = threading.Thread(target=look, name="redis-checks", daemon=True)
    thread.start()
    thread.join(settings.redis_timeout_seconds)
    if found:
        raise found[0]


def _ask(settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """INFO and CONFIG, as far as they are allowed. Raises RedisError."""
    with connect(settings, max_connections=1) as redis:
        pipeline = redis.pipeline(transaction=False)
        pipeline.info()
        pipeline.config_get("save")
        info, config = pipeline.execute(raise_on_error=False)
    for answer in (info, config):
        if isinstance(answer, exceptions.RedisError) and not isinstance(
            answer, exceptions.ResponseError
        ):
            raise answer
    return (_dict(info), _dict(config))


def _dict(answer: object) -> dict[str, Any]:
    return dict(answer) if isinstance(answer, Mapping) else {}


def _hints(info: Mapping[str, Any], config: Mapping[str, str]) -> Iterator[_Hint]:
    """Raises SettingsError for a cluster."""
    mode, policy = info.get("redis_mode"), info.get("maxmemory_policy")
    if mode == "cluster":
        raise SettingsError(
            "SLM_REDIS_URL: Redis Cluster is not supported, one primary or Sentinel is"
        )
    if mode == "sentinel":
        yield (
            logging.WARNING,
            "SLM_REDIS_URL leads to a Sentinel, not to Redis:"
            " write redis+sentinel://host:port/<master name>",
        )
        return
    if policy not in (None, "noeviction"):
        yield (
            logging.WARNING,
            f"Redis may throw jobs away when it is full: set its maxmemory-policy to noeviction"
            f" (it is {policy})",
        )
    if info.get("aof_enabled") == 0 and config.get("save") == "":
        yield (
            logging.WARNING,
            "Redis keeps nothing on disk, a restart loses every job: set its appendonly to yes",
        )
    if info.get("maxmemory") == 0:
        yield (
            logging.INFO,
            "Redis has no limit of memory: set its maxmemory, and jobs are refused before it is"
            " full",
        )
    version = re.match(r"(\d+)\.(\d+)", str(info.get("redis_version", "")))
    if version and (int(version[1]), int(version[2])) < OLDEST:
        yield (
            logging.WARNING,
            f"Redis {info['redis_version']} is too old: take 6.2 or newer",
        )


def main() -> None:
    """Exits with one line if Redis cannot be used."""
    try:
        settings = Settings.from_environment()
        info, config = _ask(settings)
        hints = [
            {"level": "warning" if level >= logging.WARNING else "ok", "says": line}
            for level, line in _hints(info, config)
        ]
        ahead = _clock(settings)
    except (SettingsError, exceptions.RedisError, OSError) as error:
        sys.exit(f"redis: {error}")
    found = {"version": info.get("redis_version"), "hints": hints, "clock_seconds": ahead}
    sys.stdout.write(json.dumps(found) + "\n")


def _clock(settings: Settings) -> float:
    """Seconds that Redis's clock is ahead of ours; 0 where it does not tell."""
    with connect(settings, max_connections=1) as redis:
        try:
            seconds, microseconds = redis.time()
        except exceptions.ResponseError:
            return 0.0
    return float(seconds) + float(microseconds) / 1e6 - time.time()


if __name__ == "__main__":
    main()
