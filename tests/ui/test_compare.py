"""The second tab: several models, one prompt, one seed."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

from tests.e2e.service import Service
from tests.ui.conftest import SLOW, Picture

FOX = "Once upon a time, there was a little fox who"
IN_ORDER = [SLOW, "untrained", "tinystories-no-cache", "tinystories"]  # of what they can do


def card(v: Any, model: str) -> Any:
    return v.page.get_by_role("article", name=model, exact=True)


def story(v: Any, model: str) -> Any:
    return card(v, model).locator(".story span").last  # behind the dots that stand for the prompt


def choose(v: Any, *models: str) -> None:
    for name in IN_ORDER:
        v.page.get_by_role("checkbox", name=name, exact=True).set_checked(name in models)


def test_models_side_by_side(visit: Any, service: Service, picture: Picture) -> None:
    v = visit("compare")
    boxes = v.at("#compare-models label")
    expect(boxes).to_have_text(IN_ORDER)
    choose(v, *IN_ORDER[1:])
    v.fill("compare", prompt=FOX, max_tokens=60, seed=4)
    v.at("#compare-start").click()
    expect(v.status("compare")).to_have_text("Done, with seed 4.")
    expect(v.at("#compare-cards article h2")).to_have_text(IN_ORDER[1:])
    for model in IN_ORDER[1:]:
        request = {"prompt": FOX, "model": model, "max_tokens": 60, "seed": 4}
        shown = card(v, model)
        assert story(v, model).text_content() == service.client.generate(**request).text
        facts = shown.locator(".facts").inner_text()
        assert re.search(r"First token\s+[\d.]+ m?s\s+Whole text\s+[\d.]+ m?s\s+Tokens/s", facts)
    widths = [
        sum(span.bounding_box()["width"] for span in row.locator(".track span").all())
        for row in v.at("#compare-bars .row").all()
    ]
    track = v.at("#compare-bars .track").first.bounding_box()["width"]
    assert len(widths) == 3
    assert abs(max(widths) - track) < 2
    assert max(widths) == widths[1]  # the one without a KV cache
    picture(v.page, "playground-compare")


def test_it_can_be_cancelled(visit: Any, service: Service) -> None:
    v = visit("compare")
    choose(v, SLOW, "tinystories")
    v.fill("compare", max_tokens=450)
    v.at("#compare-start").click()
    expect(story(v, SLOW)).not_to_be_empty()
    v.at("#compare-cancel").click()
    expect(v.status("compare")).to_have_text(re.compile(r"^Cancelled, with seed \d+\.$"))
    expect(card(v, SLOW).locator(".state")).to_have_text(re.compile("^Cancelled after"))
    expect(card(v, "tinystories").locator(".state")).to_have_text("Not run.")
    assert {job.status for job in service.client.jobs(limit=2)} == {"cancelled", "succeeded"}


def test_what_is_wrong_is_told(visit: Any) -> None:
    v = visit("compare")
    choose(v)
    v.at("#compare-start").click()
    expect(v.page.get_by_role("alert")).to_contain_text("No model is chosen")
    choose(v, "untrained", "tinystories")
    v.fill("compare", temperature=-1)
    v.at("#compare-start").click()
    expect(v.at("#compare-temperature")).to_have_attribute("aria-invalid", "true")
    expect(card(v, "tinystories").locator(".state")).to_have_text("Not run.")
    v.fill("compare", temperature=0, prompt="fox " * 450, max_tokens=100)  # one token would fit
    v.at("#compare-start").click()
    for model in ("untrained", "tinystories"):
        expect(card(v, model).locator(".state")).to_contain_text("more than the context of 512")
