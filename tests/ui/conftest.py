"""A real service, and a real Chromium that looks at its page. Without Chromium all is skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from slm_jobs.settings import Settings
from tests.e2e.service import Service
from tests.ui.visit import Visit

ROOT = Path(__file__).parents[2]
SLOW = "untrained-no-cache"  # hardly comes to an end by itself: for tests that cut it short
_MANIFEST = f"""
[{SLOW}]
checkpoint = "{ROOT / "slm_core" / "checkpoints" / "tinystories"}"
untrained = true
kv_cache = false
"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=20_000)  # ms; for what a slow machine takes


class Picture:
    """Takes pictures of the page where SLM_SCREENSHOTS names a folder: to look at, and for docs/,
    which holds `playground.png` and `playground-compare.png`."""

    folder = os.environ.get("SLM_SCREENSHOTS", "")

    def __call__(self, page: Page, name: str) -> None:
        if self.folder:
            page.mouse.move(0, 0)
            path = ROOT / self.folder / f"{name}.png"
            page.screenshot(path=path, animations="disabled", caret="hide", full_page=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in _BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here; on Debian: apt-get install chromium")


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def running_service(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The shipped models and the slow one, on one worker; callbacks sweep, as under `slm up`."""
    folder = tmp_path_factory.mktemp("service")
    manifest = folder / "slow.toml"
    manifest.write_text(_MANIFEST)
    with Service(folder, manifest) as service:
        shipped = Settings.model_fields["models_file"].default
        service.env["SLM_MODELS_FILE"] = f"{shipped}{os.pathsep}{manifest}"
        service.start(workers=1)
        service.start_callbacks()
        yield service


@pytest.fixture
def service(running_service: Service) -> Service:
    """With its worker alive, whatever the test before did to it."""
    if not running_service.workers:
        running_service.start_worker()
    running_service.wait_for_workers(1)
    return running_service


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Callable[..., Visit]]:
    """Opens the page, as a person with a browser of their own would; looks at the end whether it
    kept to itself. Options are those of `Visit` and of a browser's context."""
    visits: list[Visit] = []

    def open_page(tab: str = "generate", **options: Any) -> Visit:
        options.setdefault("device_scale_factor", 1.5 if Picture.folder else 1)
        visits.append(Visit(browser, service, **options))
        visits[-1].open(tab)
        return visits[-1]

    yield open_page
    for each in visits:
        each.close()
    for each in visits:
        each.check()


@pytest.fixture
def picture() -> Picture:
    return Picture()
