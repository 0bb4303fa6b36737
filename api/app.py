"""The HTTP service: `uvicorn api.app:app`. Puts the parts together; knows none of their insides."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api import admin, callbacks, dead_letters, generate, handlers, jobs, service, stream
from api.auth import Doorkeeper
from api.batches import reading as batch_lines
from api.batches import routes as batches
from api.batches.uploads import Uploads
from api.callback_targets import CallbackTargets
from api.desk import Desk
from api.documentation import DESCRIPTION, TAGS, DocumentedAPI, add_docs_page, operation_id
from api.hosts import HostCheck
from api.metrics import ApiMetrics, HttpMetrics, check_folder, several_processes
from api.metrics import router as metrics_router
from api.openai import batches as openai_batches
from api.openai import files as openai_files
from api.openai import routes as completions
from api.playground import routes as playground
from api.request_context import RequestContext
from slm_jobs.errors import ManifestError, SettingsError
from slm_jobs.events import JobEvents
from slm_jobs.lookups import Resolve
from slm_jobs.manifest import Manifest
from slm_jobs.redis_checks import check_redis
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore

app: FastAPI  # made on first access, see __getattr__

log = logging.getLogger(__name__)


def create_app(
    settings: Settings | None = None,
    store: JobStore | None = None,
    events: JobEvents | None = None,
    resolve: Resolve | None = None,
) -> FastAPI:
    """The service, on a store, events and a resolver of names of its own unless they are given.
    Redis is not called yet.

    Raises ManifestError.
    """
    settings = settings or Settings()
    manifest = Manifest.load(*settings.models_files)
    store = store or JobStore.from_settings(settings)
    events = events or JobEvents.from_settings(settings)
    desk = Desk(settings, manifest, store, events, CallbackTargets(store, resolve))
    uploads = Uploads()
    metrics = ApiMetrics(store, list(manifest.models))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for spec in manifest.models.values():
            log.info("serving %s, context %d tokens", spec.name, spec.context_length)
        yield
        await events.close()
        store.close()

    api = DocumentedAPI(
        title="SLM jobs",
        summary="Batched text generation with small language models.",
        description=DESCRIPTION,
        version=version("slm-jobs"),
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,  # ours, below, needs no CDN
        redoc_url=None,
        generate_unique_id_function=operation_id,
        redirect_slashes=False,  # behind a proxy a redirect would name an address of its own
    )
    api.state.desk = desk
    api.state.doorkeeper = Doorkeeper(store.keys)
    api.state.metrics = metrics
    api.add_middleware(HostCheck, settings.allowed_hosts)
    api.add_middleware(RequestContext)
    api.add_middleware(HttpMetrics, metrics)  # the last is the outermost
    handlers.install(api)
    add_docs_page(api)
    for routes in (
        jobs.router(desk),
        stream.router(desk),
        batches.router(desk, uploads),
        batch_lines.router(desk),
        callbacks.router(desk),
        generate.router(desk),
        completions.router(desk),
        openai_files.router(desk, uploads),
        openai_batches.router(desk, uploads),
        service.router(store, manifest),
        metrics_router(metrics),
        admin.router(store.keys),
        dead_letters.router(desk),
        playground.router(),
    ):
        api.include_router(routes)
        metrics.expect(routes.routes)
    return api


def _from_environment() -> FastAPI:
    """The service as the environment describes it, or one line that says what is wrong there."""
    try:
        settings = Settings.from_environment()
        settings.configure_logging()
        check_folder()
        if multiprocessing.parent_process() and not several_processes():
            log.warning(
                "this seems to be one of several api processes, of which /metrics counts just one:"
                " set PROMETHEUS_MULTIPROC_DIR to an empty folder"
            )
        app = create_app(settings)
        check_redis(settings)
        return app
    except (SettingsError, ManifestError) as error:
        raise SystemExit(f"api: {error}") from None


def __getattr__(name: str) -> FastAPI:
    """Importing this module starts nothing; a server that asks for `app` gets the one service."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = made = _from_environment()
    return made
