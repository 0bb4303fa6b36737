"""From what a request says about callbacks to where they go: checked before anything is taken."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi.concurrency import run_in_threadpool

from slm_jobs import callback_urls
from slm_jobs.api_keys import KeyProof, KeyStore
from slm_jobs.callback_schemas import (
    BATCH_ENDS,
    JOB_ENDS,
    BatchCallbackOptions,
    CallbackTarget,
    JobCallbackOptions,
)
from slm_jobs.callback_urls import Resolve, check_reachable, check_url

_LOOKUPS = 16  # at once: a resolver that hangs takes these threads, and nothing else
_REMEMBERED = 4_096
_REMEMBERED_SECONDS = 60.0


class CallbackTargets:
    """Checks where callbacks may go. A name that was found is remembered for a minute."""

    def __init__(self, keys: KeyStore, resolve: Resolve | None = None) -> None:
        self._keys = keys
        self._resolve = resolve or partial(
            callback_urls.resolve, executor=ThreadPoolExecutor(_LOOKUPS, "lookup")
        )
        self._known: dict[str, tuple[list[str], float]] = {}

    async def checked(
        self, asked: JobCallbackOptions | BatchCallbackOptions, caller: KeyProof, link: str
    ) -> CallbackTarget | None:
        """None if there is nobody to tell. `link` leads to all jobs, or batches: see `linked`.

        Takes a second at most. Raises CallbackUrlRefused, KeyRejected and StoreUnavailable.
        """
        if asked.callback_url is None:
            return None
        key = await run_in_threadpool(self._keys.authorise, caller)
        url = check_url(asked.callback_url, key.callback_hosts)
        await check_reachable(url, key.callback_hosts, resolve=self._look_up)
        if isinstance(asked, JobCallbackOptions):
            return CallbackTarget(
                url, tuple(asked.callback_events or JOB_ENDS), asked.callback_outputs, link
            )
        return CallbackTarget(url, tuple(asked.callback_events or BATCH_ENDS), link=link)

    async def _look_up(self, host: str, port: int) -> list[str]:
        addresses, until = self._known.get(host, ([], 0.0))
        if time.monotonic() < until:
            return addresses
        addresses = await self._resolve(host, port)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[host] = addresses, time.monotonic() + _REMEMBERED_SECONDS
        return addresses


def linked(target: CallbackTarget | None, work_id: str) -> CallbackTarget | None:
    """The target with a link to one job or batch, now that it has an id."""
    return target and target._replace(link=f"{target.link}/{work_id}")
