"""The first tab: text as it comes, and everything that can happen to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from slm_jobs.schemas import GenerationParams
from tests.e2e.service import Service
from tests.ui.conftest import SLOW, Picture

FOX = "Once upon a time, there was a little fox who"


def said_by_the_service(service: Service, **request: Any) -> str:
    return service.client.generate(**request).text


def fact(page: Page, name: str) -> str:
    entry = page.locator("#generate-facts div").filter(has=page.locator("dt", has_text=name))
    return entry.locator("dd").inner_text()


def generate(v: Any, **fields: object) -> None:
    v.fill("generate", **fields)
    v.at("#generate-start").click()


def last_job(service: Service) -> Any:
    return next(service.client.jobs(limit=1))


def test_text_comes_with_its_times(visit: Any, service: Service, picture: Picture) -> None:
    v = visit()
    assert v.page.url == f"{service.url}/"  # the key has gone from the address
    defaults = GenerationParams()
    for name in ("max_tokens", "temperature", "top_k", "top_p"):
        assert float(v.at(f"#generate-{name}").input_value()) == getattr(defaults, name)
    generate(v, prompt=FOX, max_tokens=180, seed=11)
    expect(v.status("generate")).to_have_text(re.compile(r"^Done: \d+ tokens, "))
    expected = said_by_the_service(service, prompt=FOX, max_tokens=180, seed=11)
    assert v.text("#generate-text") == expected
    assert v.text("#generate-given") == FOX
    assert fact(v.page, "Seed").startswith("11 ")
    assert re.fullmatch(r"[\d.,]+ (ms|s)", fact(v.page, "First token"))
    assert re.fullmatch(r"[\d.,]+ (ms|s)", fact(v.page, "Whole text"))
    assert float(fact(v.page, "Tokens/s").replace(",", "")) > 0
    picture(v.page, "playground")


def test_it_comes_bit_by_bit_and_cancel_keeps_it(visit: Any, service: Service) -> None:
    v = visit()
    generate(v, model=SLOW, prompt=FOX, max_tokens=450)
    expect(v.at("#generate-text")).not_to_be_empty()
    expect(v.status("generate")).to_have_text("Writing.")
    early = v.text("#generate-text")
    v.page.wait_for_function(
        "early => document.getElementById('generate-text').textContent.length > early + 20",
        arg=len(early),
    )
    v.at("#generate-cancel").click()
    expect(v.status("generate")).to_have_text(re.compile(r"^Cancelled after \d+ tokens?; the text"))
    job = last_job(service)
    assert (job.status, job.text) == ("cancelled", v.text("#generate-text"))
    assert job.text.startswith(early)
    expect(v.at("#generate-cancel")).to_be_hidden()
    expect(v.at("#generate-start")).to_be_focused()


def test_a_request_sent_again_after_a_lost_reply_makes_one_job(
    visit: Any, service: Service
) -> None:
    v = visit()
    v.lose_the_next_reply()
    generate(v, prompt="Once, a reply was lost", max_tokens=3)
    expect(v.at("#generate-notice")).to_contain_text("The service does not answer")
    lost = last_job(service).id
    v.at("#generate-start").click()
    expect(v.status("generate")).to_have_text(re.compile("^Done: 3 tokens"))
    assert last_job(service).id == lost
    v.at("#generate-start").click()
    expect(v.status("generate")).to_have_text(re.compile("^Done: 3 tokens"))
    assert last_job(service).id != lost


def test_impatience_makes_one_job_and_ends_it(visit: Any, service: Service) -> None:
    v = visit()
    held: list[Route] = []
    v.page.route("**/jobs", lambda route: held.append(route))
    v.fill("generate", model=SLOW, max_tokens=450)
    v.at("#generate-start").dblclick()
    v.at("#generate-prompt").press("Control+Enter")
    v.at("#generate-cancel").click()  # before the service has answered
    expect(v.status("generate")).to_have_text("Cancelling.")
    [only] = held
    only.continue_()
    expect(v.status("generate")).to_have_text(re.compile("^Cancelled"))
    assert last_job(service).status == "cancelled"


def test_a_drawn_seed_is_shown_and_repeats_the_text(visit: Any) -> None:
    v = visit()
    generate(v, prompt=FOX, max_tokens=40)
    expect(v.status("generate")).to_have_text(re.compile("^Done"))
    first = v.text("#generate-text")
    v.page.get_by_role("button", name="Use again").click()
    assert v.at("#generate-seed").input_value() == fact(v.page, "Seed").split()[0]
    v.at("#generate-start").click()
    expect(v.status("generate")).to_have_text(re.compile("^Done"))
    assert v.text("#generate-text") == first


def test_a_template_and_its_variables(visit: Any, service: Service) -> None:
    v = visit()
    v.at("#generate-template").select_option("animal")
    expect(v.at("#generate-prompt")).to_be_hidden()
    v.page.get_by_label("animal", exact=True).fill("hedgehog")
    generate(v, max_tokens=30, seed=3)
    expect(v.at("#generate-variables .field-error").last).to_contain_text("name")
    v.page.get_by_label("name", exact=True).fill("<b>Rusty</b>")
    given = "Once upon a time there was a little hedgehog named <b>Rusty</b>. <b>Rusty</b> loved to"
    expect(v.at("#generate-preview")).to_have_text(given)
    v.at("#generate-start").click()
    expect(v.status("generate")).to_have_text(re.compile("^Done"))
    assert v.text("#generate-given") == given
    variables = {"animal": "hedgehog", "name": "<b>Rusty</b>"}
    expected = said_by_the_service(
        service, template="animal", variables=variables, max_tokens=30, seed=3
    )
    assert v.text("#generate-text") == expected
    assert v.at("#generate-story b").count() == 0  # text, not HTML
    v.at("#generate-model").select_option("untrained")  # which has no templates
    expect(v.at("#generate-prompt")).to_be_visible()
    expect(v.at("#generate-template")).to_be_disabled()


def test_what_is_wrong_stands_beside_its_field(visit: Any) -> None:
    v = visit()
    good = {"temperature": 1, "top_p": 0.9, "max_tokens": 5, "seed": 1, "prompt": FOX}
    for wrong, value, says in (
        ("temperature", 9, "less than or equal to 5"),
        ("top_p", 0, "greater than 0"),
        ("max_tokens", 1.5, "integer"),
        ("seed", 2**60, "at most 9007199254740991"),
        ("prompt", "", "at least 1 character"),
        ("prompt", "fox " * 600, "more than the context of 512"),
    ):
        generate(v, **{**good, wrong: value})
        field = v.at(f"#generate-{wrong}")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_be_focused()
        expect(field).to_have_accessible_description(re.compile(re.escape(says)))
        expect(v.at("[aria-invalid=true]")).to_have_count(1)
        expect(v.at("#generate-notice")).to_contain_text("See the marked fields.")
    generate(v, **good)
    expect(v.status("generate")).to_have_text(re.compile("^Done"))
    expect(v.at("[aria-invalid=true]")).to_have_count(0)
    expect(v.at("#generate-notice")).to_be_empty()


def test_a_limit_of_the_key_is_told(visit: Any, service: Service) -> None:
    key = service.client.keys.create("visitor", requests_per_minute=1)["token"]
    v = visit(key=key)
    generate(v, max_tokens=1)
    expect(v.status("generate")).to_have_text(re.compile("^Done: 1 token"))
    v.at("#generate-start").click()
    notice = v.page.get_by_role("alert")
    expect(notice).to_contain_text("A limit of the key is reached")
    expect(notice).to_contain_text("Try again in")
    expect(v.at("#generate-start")).to_have_attribute("aria-disabled", "false")


def test_the_commands_do_the_same(
    visit: Any, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    v = visit(permissions=["clipboard-read", "clipboard-write"])
    prompt = 'It\'s a "fox" named `Rüdi` \\ $HOME 🦊 who'
    v.fill("generate", prompt=prompt, max_tokens=20, seed=5, top_k="")
    expected = said_by_the_service(service, prompt=prompt, max_tokens=20, seed=5, top_k=None)
    monkeypatch.setenv("SLM_API_KEY", service.api_key)
    v.at("#generate-python").click()
    expect(v.at("#generate-code-status")).to_contain_text("Copied.")
    snippet = v.page.evaluate("() => navigator.clipboard.readText()")
    assert snippet == v.text("#generate-snippet")
    assert service.api_key not in snippet
    exec(compile(snippet, "snippet", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == f"{expected}\n"
    v.at("#generate-curl").click()
    expect(v.at("#generate-snippet")).to_contain_text("curl ")
    command = v.text("#generate-snippet")
    assert service.api_key not in command
    bash = shutil.which("bash")
    if not (bash and shutil.which("curl")):
        pytest.skip("needs bash and curl")
    done = subprocess.run([bash, "-ec", command], check=True, capture_output=True)
    [output] = json.loads(done.stdout)["outputs"]
    assert output["text"] == expected


def test_a_template_is_in_the_commands_too(visit: Any) -> None:
    v = visit()
    v.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    v.at("#generate-template").select_option("animal")
    v.page.get_by_label("animal", exact=True).fill("fox")
    v.at("#generate-python").click()
    expect(v.at("#generate-code-status")).to_contain_text("Copy it from here.")
    expect(v.at("#generate-snippet")).to_contain_text('variables={"animal":"fox"}')
    expect(v.at("#generate-snippet")).to_contain_text('template="animal"')


def test_a_broken_stream_goes_on_where_it_was(visit: Any, service: Service) -> None:
    v = visit()
    asked: list[str | None] = []

    def cut(route: Route) -> None:
        asked.append(route.request.headers.get("last-event-id"))
        if len(asked) == 2:
            route.abort()
        elif len(asked) > 2:
            route.continue_()
        else:
            whole = route.fetch().text()
            events = whole.split("\n\n")
            at = next(i for i, event in enumerate(events) if "event: token" in event)
            half = "\n\n".join(events[: at + 1]) + "\n\nevent: token\ndata: {brok"
            route.fulfill(status=200, content_type="text/event-stream", body=half)

    v.page.route("**/stream", cut)
    generate(v, model=SLOW, prompt=FOX, max_tokens=60, seed=9)
    expect(v.status("generate")).to_have_text(re.compile("^Done: 60 tokens"))
    assert asked[0] is None
    assert asked[1] == asked[2]
    assert re.fullmatch(r"0:\d+", asked[1] or "")
    assert v.text("#generate-text") == last_job(service).text


def test_without_a_worker_it_waits_and_says_so(visit: Any, service: Service) -> None:
    v = visit()
    generate(v, model=SLOW, prompt=FOX, max_tokens=400)
    expect(v.status("generate")).to_have_text("Writing.")
    service.kill_worker(service.workers[0])
    expect(v.at("#generate-notice")).to_contain_text(f"No worker is alive for {SLOW}")
    expect(v.at("#generate-notice")).to_contain_text("slm up")
    expect(v.status("generate")).to_have_text("Waiting for a worker.")
    expect(v.at("#pulse")).to_have_text("No worker")
    v.at("#generate-cancel").click()
    expect(v.status("generate")).to_have_text(re.compile("^Cancelled"))
    expect(v.at("#generate-notice")).to_be_empty()
    generate(v, model="tinystories", max_tokens=30, seed=2)
    expect(v.at("#generate-notice")).to_contain_text("No worker is alive for tinystories")
    expect(v.at("#generate-wait")).to_contain_text("It is next")
    service.start_worker()
    expect(v.status("generate")).to_have_text(re.compile("^Done: 30 tokens"))
    expect(v.at("#generate-notice")).to_be_empty()
    expect(v.at("#pulse")).to_have_text("1 worker")
