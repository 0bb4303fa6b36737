"""This process's share of the janitor's work, as every worker has one: so deadlines pass, and lost
leases go back, also where no worker is left.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

from slm_jobs.errors import StoreUnavailable
from slm_jobs.store import JobStore, SweepReport

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
# As versions of Redis say it of a script whose user's rules are too narrow, see docs/security.md.
_NOT_ALLOWED = re.compile("NOPERM|no permissions|executing the script can't")


async def sweep(store: JobStore, swept: Callable[[SweepReport], None]) -> None:
    """Until it is cancelled; or not at all, where this process's rules in Redis forbid it. `swept`
    hears what our sweeps did."""
    while True:
        try:
            if report := await asyncio.to_thread(store.sweep):
                swept(report)
        except StoreUnavailable as error:
            log.debug("cannot sweep: %s", error)
        except Exception as error:
            if _NOT_ALLOWED.search(str(error)):
                log.info("Redis lets this process only deliver: workers sweep")
                return
            log.exception("sweep failed")
        await asyncio.sleep(TICK_SECONDS)
