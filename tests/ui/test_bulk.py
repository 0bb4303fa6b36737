"""The third tab: a file goes up, its results come down."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Route, expect

from tests.e2e.service import Service
from tests.ui.conftest import SLOW, Picture

PROMPTS = [f"Once upon a time, a little {animal}" for animal in ("fox", "cat", "dog", "bear")]
KEPT = "() => sessionStorage.getItem('slm-batch')"
DROP = """([name, text]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], name));
  const panel = document.getElementById("panel-bulk");
  for (const kind of ["dragover", "drop"]) {
    const how = {dataTransfer: transfer, bubbles: true, cancelable: true};
    panel.dispatchEvent(new DragEvent(kind, how));
  }
}"""


def choose(v: Any, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    v.at("#bulk-file").set_input_files(files=[file])


def start(v: Any, **fields: object) -> None:
    v.fill("bulk", **fields)
    v.at("#bulk-start").click()


def come_back(v: Any) -> None:
    """From another tab of the browser: the page asks at once how its batch stands."""
    v.page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")


def downloaded(v: Any, button: str) -> tuple[str, list[Any]]:
    """The file's name, and its lines."""
    with v.page.expect_download() as waiting:
        v.page.get_by_role("button", name=button).click()
    text = Path(waiting.value.path()).read_text("utf-8")
    return waiting.value.suggested_filename, [json.loads(line) for line in text.splitlines()]


def test_a_dropped_file_becomes_texts(visit: Any, picture: Picture) -> None:
    v = visit("bulk")
    v.page.evaluate(DROP, ["stories.txt", "\n".join(PROMPTS * 12)])
    expect(v.at("#bulk-file-name")).to_have_text("stories.txt")
    start(v, max_tokens=60, seed=1)
    expect(v.status("bulk")).to_have_text("Done.")
    assert v.at("#bulk-progress").evaluate("bar => [bar.value, bar.max]") == [48, 48]
    expect(v.at("#bulk-counts")).to_contain_text("succeeded")
    expect(v.at("#bulk-preview li")).to_have_count(3)
    name, lines = downloaded(v, "Download results")
    assert name == "stories.results.jsonl"
    assert [line["seq"] for line in lines] == list(range(1, 49))
    assert sorted(line["prompt"] for line in lines) == sorted(PROMPTS * 12)
    assert all(line["text"] and line["usage"]["completion_tokens"] <= 60 for line in lines)
    expect(v.at("#bulk-download")).to_have_text("Saved.")
    picture(v.page, "playground-bulk")


def test_pages_of_results_make_one_file(visit: Any) -> None:
    v = visit("bulk")
    asked: list[str] = []

    def small(route: Any) -> None:
        asked.append(route.request.url)
        route.continue_(url=route.request.url.replace("limit=2000", "limit=3"))

    v.page.route("**/results?after=*", small)
    choose(
        v,
        "rows.csv.gz",
        gzip.compress(
            b"prompt,custom_id\n"
            + b"".join(
                f"{prompt},row-{i}\n".replace(", a", " a").encode()
                for i, prompt in enumerate(PROMPTS * 2)
            )
        ),
    )
    start(v, max_tokens=4)
    expect(v.status("bulk")).to_have_text("Done.")
    name, lines = downloaded(v, "Download results")
    assert name == "rows.results.jsonl"
    assert sorted(line["custom_id"] for line in lines) == [f"row-{i}" for i in range(8)]
    assert [re.search(r"after=(\d+)", url)[1] for url in asked] == ["0", "3", "6", "8"]  # type: ignore[index]


def test_a_reload_goes_on_and_cancel_keeps_what_is_done(visit: Any, service: Service) -> None:
    v = visit("bulk")
    rows = [{"prompt": PROMPTS[0], "max_tokens": most} for most in (1, 1, 1, *[400] * 7)]
    choose(v, "long.jsonl", "\n".join(map(json.dumps, rows)))
    start(v, model=SLOW)
    expect(v.at("#bulk-counts div").filter(has_text="succeeded").locator("dd")).to_have_text("3")
    v.page.reload()
    expect(v.at("#panel-bulk")).to_be_visible()
    expect(v.at("#bulk-title")).to_have_text("long.jsonl")
    expect(v.status("bulk")).to_have_text("Running.")
    v.at("#bulk-cancel").click()
    expect(v.status("bulk")).to_have_text("Cancelled; what was done is kept.")
    assert len(downloaded(v, "Download results")[1]) == 3
    name, errors = downloaded(v, "Download errors")
    assert name == "long.errors.jsonl"
    assert {line["error"]["code"] for line in errors} == {"cancelled"}
    assert len(errors) == 7
    [batch] = service.client.batches.list(limit=1)
    assert (batch.name, batch.status) == ("long.jsonl", "cancelled")


def test_wrong_lines_are_listed_or_left_out(visit: Any) -> None:
    v = visit("bulk")
    lines = ['{"prompt": "A cat"}', '{"prompt": 7}', "{broken", '{"prompt": "A dog"}']
    choose(v, "rows.jsonl", "\n".join(lines))
    start(v, max_tokens=3)
    notice = v.page.get_by_role("alert")
    expect(notice).to_contain_text("Rows of the batch are invalid")
    expect(notice.locator("li")).to_have_count(2)
    expect(notice).to_contain_text("Line 2")
    expect(notice).to_contain_text("Line 3")
    expect(v.status("bulk")).to_have_text("The file was not taken.")
    v.at("#bulk-skip").check()
    v.at("#bulk-start").click()
    expect(v.status("bulk")).to_have_text("Done.")
    expect(v.at("#bulk-failures li")).to_have_count(2)
    assert [line["line"] for line in downloaded(v, "Download errors")[1]] == [2, 3]
    assert len(downloaded(v, "Download results")[1]) == 2


def test_a_file_that_cannot_be_taken(visit: Any) -> None:
    v = visit("bulk")
    v.at("#bulk-start").click()
    expect(v.at("#bulk-file-error")).to_have_text("Choose a file first.")
    choose(v, "story.pdf", "x")
    expect(v.at("#bulk-file-error")).to_contain_text("none of .txt, .csv and .jsonl")
    expect(v.at("#bulk-file-name")).to_have_text("Drop a file here, or choose one")
    choose(v, "empty.txt", "")
    v.at("#bulk-start").click()
    expect(v.page.get_by_role("alert")).to_contain_text("There is no row in it")
    choose(v, "broken.txt.gz", b"\x1f\x8b\x08 no")
    v.at("#bulk-start").click()
    expect(v.page.get_by_role("alert")).to_contain_text("no valid gzip")
    choose(v, "good.TXT", "A cat")
    start(v, temperature=-1)
    expect(v.at("#bulk-temperature")).to_have_attribute("aria-invalid", "true")
    start(v, temperature=0, max_tokens=2)
    expect(v.status("bulk")).to_have_text("Done.")


def test_a_new_batch_has_the_place_to_itself(visit: Any) -> None:
    v = visit("bulk")
    v.at("#bulk-skip").check()
    choose(v, "old.txt", "A cat\n" + "fox " * 600)
    start(v, max_tokens=2)
    expect(v.status("bulk")).to_have_text("Done.")
    expect(v.at("#bulk-failures li")).to_have_count(1)
    expect(v.at("#bulk-preview li")).to_have_count(1)

    def held(address: str, act: Callable[[], Any]) -> Route:
        """The request to an address that `act` leads to, on its way."""
        found: list[Route] = []

        def hold(route: Route) -> None:
            if found:
                route.fallback()
            else:
                found.append(route)

        v.page.route(address, hold)
        with v.page.expect_request(address):
            act()
        v.page.evaluate("() => null")
        [route] = found
        return route

    old_errors = held("**/batches/*/errors?*", lambda: come_back(v))
    old_news = held("**/batches/*", lambda: come_back(v))
    choose(v, "new.txt", "\n".join(PROMPTS))
    v.fill("bulk", model=SLOW, max_tokens=400)
    held("**/batches?*", v.at("#bulk-start").click)
    come_back(v)
    with v.answered("/batches/"):
        old_news.continue_()
    expect(v.at("#bulk-title")).to_have_text("new.txt")
    expect(v.at("#bulk-start")).to_have_attribute("aria-disabled", "true")
    v.at("#bulk-cancel").click()
    expect(v.status("bulk")).to_have_text("Cancelled; nothing was kept.")
    upload = held("**/batches?*", v.at("#bulk-start").click)
    upload.continue_()
    expect(v.status("bulk")).to_have_text("Running.")
    with v.answered("/errors?"):
        old_errors.continue_()
    assert v.at("#bulk-failures li, #bulk-preview li").count() == 0
    for part in ("errors", "failures", "preview"):
        expect(v.at(f"#bulk-{part}")).to_be_hidden()
    v.at("#bulk-cancel").click()
    expect(v.status("bulk")).to_have_text("Cancelled; what was done is kept.")
    expect(v.at("#bulk-failures li")).to_have_count(4)


def test_a_file_sent_again_after_a_lost_reply_makes_one_batch(visit: Any, service: Service) -> None:
    v = visit("bulk")

    def made() -> int:
        return sum(batch.name == "lost.txt" for batch in service.client.batches.list())

    choose(v, "lost.txt", "A cat")
    v.lose_the_next_reply()
    start(v, max_tokens=2)
    expect(v.page.get_by_role("alert")).to_contain_text("The upload broke off")
    assert made() == 1
    for expected in (1, 2):
        v.at("#bulk-start").click()
        expect(v.status("bulk")).to_have_text("Done.")
        assert made() == expected


def test_a_batch_goes_on_with_another_key_until_it_is_gone(visit: Any, service: Service) -> None:
    made = service.client.keys.create("guest")
    v = visit("bulk", key=made["token"])
    choose(v, "long.txt", "\n".join(PROMPTS))
    start(v, model=SLOW, max_tokens=400)
    expect(v.status("bulk")).to_have_text("Running.")
    batch = v.page.evaluate(KEPT)
    service.client.keys.revoke(made["id"])
    come_back(v)
    expect(v.page.get_by_role("dialog")).to_be_visible()
    expect(v.at("#bulk-start")).to_have_attribute("aria-disabled", "false")
    v.at("#key-input").fill(service.api_key)
    v.at("#key-form button[type=submit]").click()
    expect(v.page.get_by_role("dialog")).to_be_hidden()
    expect(v.at("#bulk-start")).to_have_attribute("aria-disabled", "true")
    gone = json.dumps({"title": "There is no such batch"})
    v.page.route("**/batches/*", lambda route: route.fulfill(status=404, body=gone))
    come_back(v)
    expect(v.page.get_by_role("alert")).to_contain_text("There is no such batch")
    expect(v.at("#bulk-start")).to_have_attribute("aria-disabled", "false")
    expect(v.at("#bulk-cancel")).to_be_hidden()
    assert v.page.evaluate(KEPT) is None
    service.client.batches.cancel(batch)


def test_a_batch_that_is_gone_is_forgotten(visit: Any, service: Service) -> None:
    v = visit("bulk")
    choose(v, "one.txt", "A cat")
    start(v, max_tokens=2)
    expect(v.status("bulk")).to_have_text("Done.")
    [batch] = service.client.batches.list(limit=1)
    service.client.batches.delete(batch.id)
    v.page.reload()
    v.until_ready()
    v.page.wait_for_function(f"({KEPT})() === null")
    expect(v.at("#bulk-title")).to_have_text("No batch yet")
