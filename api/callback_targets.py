"""From what a request says about callbacks to where they go: checked before anything is taken."""

from __future__ import annotations

import time
from functools import partial

from fastapi.concurrency import run_in_threadpool

from slm_jobs.api_keys import ApiKey, KeyProof
from slm_jobs.callback_schemas import (
    BATCH_ENDS,
    JOB_ENDS,
    BatchCallbackOptions,
    CallbackTarget,
    JobCallbackOptions,
)
from slm_jobs.callback_urls import check_reachable, check_url
from slm_jobs.lookups import Lookups, Resolve
from slm_jobs.store import JobStore

_LOOKUPS = 64  # at once: a resolver that hangs takes these threads, and nothing else
_LOOKUPS_OF_KEY = 16
_REMEMBERED = 4_096
_REMEMBERED_SECONDS = 60.0


class CallbackTargets:
    """Checks where callbacks may go. A name that was found is remembered for a minute."""

    def __init__(self, store: JobStore, resolve: Resolve | None = None) -> None:
        self._store = store
        lookups = Lookups(_LOOKUPS, _LOOKUPS_OF_KEY)
        self._resolver = lookups.of if resolve is None else lambda _key: resolve
        self._known: dict[str, tuple[list[str], float]] = {}

    async def checked(
        self, asked: JobCallbackOptions | BatchCallbackOptions, caller: KeyProof, link: str
    ) -> CallbackTarget | None:
        """None if there is nobody to tell. `link` leads to all jobs, or batches: see `linked`.

        Takes a second at most. Raises CallbackUrlRefused, TooManyCallbacks, KeyRejected and
        StoreUnavailable.
        """
        if asked.callback_url is None:
            return None
        key = await run_in_threadpool(self._authorise, caller)
        url = check_url(asked.callback_url, key.callback_hosts)
        await check_reachable(url, key.callback_hosts, resolve=partial(self._look_up, key.id))
        if isinstance(asked, JobCallbackOptions):
            return CallbackTarget(
                url, tuple(asked.callback_events or JOB_ENDS), asked.callback_outputs, link
            )
        return CallbackTarget(url, tuple(asked.callback_events or BATCH_ENDS), link=link)

    def _authorise(self, caller: KeyProof) -> ApiKey:
        key = self._store.keys.authorise(caller)
        self._store.callbacks.check_room(key.id)
        return key

    async def _look_up(self, key: str, host: str, port: int) -> list[str]:
        addresses, until = self._known.get(host, ([], 0.0))
        if time.monotonic() < until:
            return addresses
        addresses = await self._resolver(key)(host, port)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[host] = addresses, time.monotonic() + _REMEMBERED_SECONDS
        return addresses


def linked(target: CallbackTarget | None, work_id: str) -> CallbackTarget | None:
    """The target with a link to one job or batch, now that it has an id."""
    return target and target._replace(link=f"{target.link}/{work_id}")
