"""A person before the page: what they do there, and what the page must not do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import urldefrag, urlsplit

from playwright.sync_api import Browser, Locator, Page, Request, Response, expect

from tests.e2e.service import Service

_LOSE = """() => {
  const real = window.fetch;
  window.fetch = async (address, options) => {
    const reply = await real(address, options);
    if (options.method !== "POST") return reply;
    window.fetch = real;
    throw new TypeError("the connection broke");
  };
}"""
_TAKEN_IN = "() => scheduler.postTask(() => null, { priority: 'background' })"
DESKTOP = {"width": 1120, "height": 800}
PHONE = {"width": 375, "height": 812}


class Visit:
    """A browser context with one page. `key` is the key in the address, the admin's by default;
    none with an empty one."""

    def __init__(
        self, browser: Browser, service: Service, *, key: str | None = None, **options: Any
    ) -> None:
        self.service = service
        self.key = service.api_key if key is None else key
        self.requests: list[Request] = []
        self.loaded: list[Response] = []
        self.said: list[str] = []  # by the console, in anger
        self.context = browser.new_context(
            **{"viewport": DESKTOP, "reduced_motion": "reduce", **options}
        )
        self.page: Page = self.context.new_page()
        self.context.on("request", lambda request: self.requests.append(request))
        self.context.on("response", lambda response: self.loaded.append(response))
        self.context.on("weberror", lambda problem: self.said.append(str(problem.error)))
        self.context.on("console", self._hear)

    def open(self, tab: str = "generate") -> Self:
        self.page.goto(f"{self.service.url}/" + (f"#key={self.key}" if self.key else ""))
        if self.key:
            self.until_ready()
        if tab != "generate":
            self.show(tab)
        return self

    def until_ready(self) -> None:
        expect(self.page.locator("#generate-model option")).not_to_have_count(0)

    def show(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab.capitalize()).click()
        expect(self.at(f"#panel-{tab}")).to_be_visible()

    def at(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def fill(self, panel: str, **fields: object) -> None:
        """Fields by the ends of their ids."""
        for name, value in fields.items():
            field = self.at(f"#{panel}-{name}")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(str(value))
            else:
                field.fill(str(value))

    def lose_the_next_reply(self) -> None:
        """The next POST does its work, and the page is not told."""
        self.page.evaluate(_LOSE)

    @contextmanager
    def answered(self, address: str) -> Iterator[None]:
        """Until the page has taken in an answer from an address that holds this."""
        with self.page.expect_event("requestfinished", lambda each: address in each.url):
            yield
        self.page.evaluate(_TAKEN_IN)

    def status(self, panel: str) -> Locator:
        return self.at(f"#{panel}-status")

    def text(self, selector: str) -> str:
        return self.at(selector).text_content() or ""

    def close(self) -> None:
        self.context.close()

    def check(self) -> None:
        """Nothing left the service, no address carried a key, and nothing went wrong unseen."""
        origin = self.service.url
        for request in self.requests:
            address = urldefrag(request.url).url  # the rest is told to no server
            if urlsplit(address).scheme in ("http", "https"):
                assert address.startswith(f"{origin}/"), address
                assert self.service.api_key not in address
                assert not self.key or self.key not in address
        assert self.said == []

    def _hear(self, message: Any) -> None:
        refused = message.text.startswith("Failed to load resource")  # problems are to be expected
        if message.type in ("error", "warning") and not refused:
            self.said.append(message.text)
