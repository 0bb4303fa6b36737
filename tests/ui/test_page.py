"""The page as a whole: for keyboards, screen readers, phones, by day and night, and by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Route, expect

from tests.e2e.service import Service
from tests.ui.conftest import SLOW, Picture
from tests.ui.visit import PHONE

TABS = ("generate", "compare", "bulk", "queue")
HURRY = """() => {
  const real = AbortSignal.timeout;
  return new Promise((resolve) => {
    AbortSignal.timeout = (ms) => (resolve(ms), real.call(AbortSignal, ms / 100));
  });
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def fill_with_life(v: Any) -> None:
    """Results, and problems, on every tab."""
    v.show("generate")
    v.fill("generate", max_tokens=30, seed=1)
    v.at("#generate-start").click()
    expect(v.status("generate")).to_have_text(re.compile("^Done"))
    v.at("#generate-curl").click()
    expect(v.at("#generate-snippet")).not_to_be_empty()
    v.fill("generate", temperature=9)
    v.at("#generate-start").click()
    expect(v.at("#generate-temperature")).to_have_attribute("aria-invalid", "true")
    v.show("compare")
    v.page.get_by_role("checkbox", name=SLOW, exact=True).uncheck()
    v.fill("compare", max_tokens=12)
    v.at("#compare-start").click()
    expect(v.status("compare")).to_contain_text("Done")
    v.show("bulk")
    rows = b"A cat\nA dog\nA fox\n" + b"fox " * 600
    v.at("#bulk-file").set_input_files(
        files=[{"name": "a-file-with-a-rather-long-name.txt", "mimeType": "", "buffer": rows}]
    )
    v.at("#bulk-skip").check()
    v.fill("bulk", max_tokens=8)
    v.at("#bulk-start").click()
    expect(v.status("bulk")).to_have_text("Done.")
    expect(v.at("#bulk-failures li")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Any, scheme: str, picture: Picture) -> None:
    v = visit(color_scheme=scheme, bypass_csp=True)  # axe is a script from elsewhere
    fill_with_life(v)
    for tab in TABS:
        v.show(tab)
        found = Axe().run(v.page)
        assert not found.response["violations"], f"{tab}: {found.generate_report()}"
        if scheme == "dark":
            picture(v.page, f"playground-dark-{tab}")
    v.at("#key-change").click()
    found = Axe().run(v.page)
    assert not found.response["violations"], found.generate_report()


def test_a_phone_needs_no_sideways_scrolling(visit: Any, picture: Picture) -> None:
    v = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    fill_with_life(v)
    for tab in TABS:
        v.show(tab)
        assert v.page.evaluate(OVERFLOW) == 0, tab
        for button in v.at("button:visible:not(dd button)").all():
            box = button.bounding_box()
            assert box
            assert box["height"] >= 44, button.text_content()
        picture(v.page, f"playground-phone-{tab}")


def test_everything_works_by_keyboard(visit: Any) -> None:
    v = visit()
    press, focused = v.page.keyboard.press, v.page.locator(":focus")
    for expected in ("API", "Key", "Generate"):
        press("Tab")
        expect(focused).to_have_text(expected)
    for key, name in (
        ("ArrowRight", "Compare"),
        ("End", "Queue"),
        ("ArrowRight", "Generate"),
        ("ArrowLeft", "Queue"),
        ("Home", "Generate"),
    ):
        press(key)
        expect(focused).to_have_text(name)
        expect(focused).to_have_attribute("aria-selected", "true")
        expect(v.page.get_by_role("tabpanel", name=name)).to_be_visible()
        expect(v.page).to_have_title(f"{name} · SLM playground")
    labels = ["Model", "Begin with", "Prompt", "Length", "Temperature", "Top-k", "Top-p", "Seed"]
    for label in labels:
        press("Tab")
        expect(focused).to_have_accessible_name(label)
        if label == "Length":
            v.page.keyboard.type("12")  # over what is selected
    press("Tab")
    press("Enter")
    expect(v.status("generate")).to_have_text(re.compile("^Done: 12 tokens"))
    expect(focused).to_have_text("Generate")
    v.at("#generate-prompt").press("Control+Enter")
    expect(v.status("generate")).to_have_text(re.compile("^Done: 12 tokens"))
    v.at("#key-change").focus()
    press("Enter")
    expect(v.at("#key-input")).to_be_focused()
    press("Escape")
    expect(v.at("#key-change")).to_be_focused()


def test_a_tab_has_an_address(visit: Any, service: Service) -> None:
    v = visit("queue")
    assert v.page.url == f"{service.url}/#queue"
    v.page.reload()
    expect(v.at("#panel-queue")).to_be_visible()
    v.page.goto(f"{service.url}/#bulk")
    expect(v.at("#panel-bulk")).to_be_visible()
    expect(v.at("#panel-queue")).to_be_hidden()


def test_what_it_loads_is_small(visit: Any) -> None:
    v = visit()
    files = [
        response
        for response in v.loaded
        if response.request.resource_type in ("document", "script", "stylesheet", "image", "font")
    ]
    assert len(files) > 5
    assert sum(len(response.body()) for response in files) < 100_000


def test_a_service_that_is_away_is_told_and_found_again(visit: Any) -> None:
    v = visit()
    v.page.route("**/queue", lambda route: route.abort())
    v.page.route("**/jobs", lambda route: route.abort())
    v.at("#generate-start").click()
    expect(v.at("#generate-notice")).to_contain_text("The service does not answer")
    expect(v.at("#generate-notice")).to_contain_text("slm up")
    v.show("queue")
    expect(v.at("#pulse")).to_have_text("No answer")
    expect(v.at("#service-notice")).to_contain_text("The service does not answer")
    v.page.unroute_all()
    expect(v.at("#pulse")).to_have_text("1 worker")
    expect(v.at("#service-notice")).to_be_empty()

    patience = v.page.evaluate(HURRY)
    assert patience == 10_000
    v.page.route("**/queue", lambda _: None)  # it hangs
    expect(v.at("#pulse")).to_have_text("No answer")
    expect(v.at("#service-notice")).to_contain_text("The service does not answer")
    v.page.unroute_all()
    expect(v.at("#pulse")).to_have_text("1 worker")


def test_an_answer_that_is_no_problem_document(visit: Any) -> None:
    v = visit()
    v.page.route(
        "**/jobs",
        lambda route: route.fulfill(status=502, content_type="text/html", body="<b>bad</b>"),
    )
    v.at("#generate-start").click()
    expect(v.at("#generate-notice")).to_contain_text("The service answered 502")


def test_it_works_behind_a_proxy_with_a_prefix(visit: Any, service: Service) -> None:
    v = visit(key="")
    asked = set()

    def forward(route: Route) -> None:
        asked.add(route.request.url)
        route.continue_(url=route.request.url.replace("/slm/", "/"))

    v.page.route("**/slm/**", forward)
    v.page.goto(f"{service.url}/slm/#key={service.api_key}")
    v.until_ready()
    v.fill("generate", max_tokens=4)
    v.at("#generate-start").click()
    expect(v.status("generate")).to_have_text(re.compile("^Done: 4 tokens"))
    v.at("#generate-curl").click()
    expect(v.at("#generate-snippet")).to_contain_text(f"{service.url}/slm/jobs")
    assert f"{service.url}/slm/queue" in asked
    assert v.page.get_by_role("link", name="API").get_attribute("href") == "docs"
