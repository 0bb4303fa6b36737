"""python -m worker.callbacks

Delivers callbacks: POSTs what happened to jobs and batches to the URLs that were given with them,
signed by the Standard Webhooks specification, and again by the schedule until it is answered with
2xx. Run any number of these; each takes what is due from Redis. SIGTERM lets attempts that run come
to their end, a second one ends at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

from slm_jobs.errors import ManifestError, SettingsError
from slm_jobs.events import DueEvents
from slm_jobs.lookups import Lookups
from slm_jobs.manifest import Manifest
from slm_jobs.metrics import MetricsServer
from slm_jobs.redis_checks import check_redis
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from worker.callbacks.courier import Courier
from worker.callbacks.delivery import Sender
from worker.callbacks.janitor import sweep
from worker.callbacks.metrics import CallbackMetrics

log = logging.getLogger("worker.callbacks")


async def serve(settings: Settings, store: JobStore) -> None:
    """Delivers until SIGTERM or SIGINT."""
    at_once = settings.callback_concurrency
    lookups = Lookups(2 * at_once, max(1, at_once // 8))
    sender = Sender(settings, resolver=lookups.of)
    metrics = CallbackMetrics(_models(settings))
    server = MetricsServer(settings, metrics.registry)
    courier = Courier(store.callbacks, sender.attempt, settings, metrics)
    events = DueEvents(settings, courier.wake)

    def on_signal(number: signal.Signals) -> None:
        log.info("stopping at %s; a second one ends at once", number.name)
        courier.stop()
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, _end, 128 + each)

    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, on_signal, each)
    log.info(
        "delivering callbacks, %d at once, %d to one host, %d attempts each",
        settings.callback_concurrency,
        settings.callback_per_host,
        len(settings.callback_schedule_seconds),
    )
    server.start()
    janitor = asyncio.create_task(sweep(store, metrics.ends.swept), name="janitor")
    async with events:
        await courier.run()
    janitor.cancel()
    await asyncio.to_thread(server.stop)


def _models(settings: Settings) -> list[str]:
    """Those of the manifest, for series that are to be there at 0; it may well have none."""
    try:
        return list(Manifest.load(*settings.models_files).models)
    except ManifestError:
        return []


def _environment() -> str:
    """The settings that matter here, for people."""
    lines = ["environment:"]
    for name, field in Settings.model_fields.items():
        if name.startswith(("callback_", "redis_", "log_", "metrics_")):
            default = field.default
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            lines += [f"  SLM_{name.upper()}={shown}", f"      {field.description}"]
    return "\n".join(lines)


def _end(status: int) -> None:
    """Without waiting for threads: those in a name server's hands cannot be ended."""
    logging.shutdown()
    os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m worker.callbacks",
        description=(__doc__ or "").partition("\n\n")[2],
        epilog=_environment(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = Settings.from_environment()
        settings.configure_logging()
        check_redis(settings)
    except SettingsError as error:
        sys.exit(f"callbacks: {error}")
    logging.getLogger("httpcore").setLevel(logging.WARNING)  # tells headers
    asyncio.run(serve(settings, JobStore.from_settings(settings, max_connections=4)))
    _end(0)


if __name__ == "__main__":
    main()
