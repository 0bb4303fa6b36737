"""The key: from the address, from its owner, wrong, and revoked."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import expect

from tests.e2e.service import Service

WRONG = "slm_aaaaaaaaaa_" + "x" * 43
KEPT = "() => [localStorage.length, document.cookie, sessionStorage.getItem('slm-key')]"


def use(v: Any, key: str) -> None:
    v.at("#key-input").fill(key)
    v.at("#key-form button[type=submit]").click()


def test_without_a_key_the_page_asks_for_one(visit: Any, service: Service) -> None:
    v = visit(key="")
    dialog = v.page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    expect(v.at("#key-input")).to_be_focused()
    expect(dialog).to_contain_text("slm up prints this page's address")
    for given, says in (("", "Paste a key."), ("slm_ä", "no spaces or odd characters")):
        use(v, given)
        expect(v.at("#key-error")).to_contain_text(says)
    use(v, WRONG)
    notice = dialog.get_by_role("alert")
    expect(notice).to_contain_text("This key does not work")
    expect(notice).to_contain_text("slm keys create makes another")
    use(v, f"  {service.api_key}\n")
    expect(dialog).to_be_hidden()
    v.until_ready()
    assert v.at("#key-input").input_value() == ""
    assert v.page.evaluate(KEPT) == [0, "", service.api_key]
    v.page.reload()
    v.until_ready()
    other_tab = v.context.new_page()
    other_tab.goto(service.url)
    expect(other_tab.get_by_role("dialog")).to_be_visible()


def test_an_address_with_a_wrong_key(visit: Any, service: Service) -> None:
    v = visit(key="")
    damaged = f"{service.url}/#key=slm_\N{CYRILLIC SMALL LETTER A}"
    v.page.goto(damaged)
    expect(v.at("#key-error")).to_contain_text("no spaces or odd characters")
    assert v.page.evaluate(KEPT) == [0, "", None]
    v.page.goto(f"{service.url}/#key={WRONG}")
    expect(v.page.get_by_role("dialog").get_by_role("alert")).to_contain_text("revoked")
    expect(v.at("#pulse")).to_have_text("No key")
    v.page.keyboard.press("Escape")
    expect(v.page.get_by_role("dialog")).to_be_hidden()
    v.page.goto(f"{service.url}/#key={service.api_key}")  # into the same page
    v.until_ready()
    assert v.page.url == f"{service.url}/"
    expect(v.at("#pulse")).to_have_text("1 worker")
    v.page.goto(damaged)
    expect(v.page.get_by_role("dialog")).to_be_visible()
    expect(v.at("#key-error")).to_contain_text("no spaces or odd characters")
    assert v.page.url == f"{service.url}/"
    assert v.page.evaluate(KEPT) == [0, "", service.api_key]


def test_a_key_that_is_revoked_meanwhile(visit: Any, service: Service) -> None:
    made = service.client.keys.create("guest")
    v = visit(key=made["token"])
    service.client.keys.revoke(made["id"])
    v.at("#generate-start").click()
    expect(v.page.get_by_role("dialog").get_by_role("alert")).to_contain_text("does not work")
    use(v, service.api_key)
    expect(v.page.get_by_role("dialog")).to_be_hidden()
    v.fill("generate", max_tokens=2)
    v.at("#generate-start").click()
    expect(v.status("generate")).to_contain_text("Done: 2 tokens")
