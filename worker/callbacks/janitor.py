"""This process's share of the janitor's work, as every worker has one: so deadlines pass, and lost
leases go back, also where no worker is left.
"""

from __future__ import annotations

import asyncio
import logging

from slm_jobs.errors import StoreUnavailable
from slm_jobs.store import JobStore

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0


async def sweep(store: JobStore, lease_seconds: float) -> None:
    """Until it is cancelled."""
    while True:
        pause = TICK_SECONDS
        try:
            await asyncio.to_thread(store.sweep)
        except StoreUnavailable as error:
            # workers were cut off too: let them extend their leases before taking any back
            log.debug("cannot sweep: %s", error)
            pause = lease_seconds
        except Exception:
            log.exception("sweep failed")
        await asyncio.sleep(pause)
