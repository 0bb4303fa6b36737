"""The fourth tab: what waits and runs now."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from playwright.sync_api import expect

from tests.e2e.service import SLOTS, Service
from tests.ui.conftest import SLOW, Picture


def figure(v: Any, model: str, name: str) -> Any:
    card = v.page.get_by_role("article", name=model, exact=True)
    return card.locator(".figures > div").filter(has=v.page.locator("dt", has_text=name))


def test_the_queue_is_live(visit: Any, service: Service, picture: Picture) -> None:
    v = visit("queue")
    expect(v.at("#queue-models article")).to_have_count(4)
    slots = figure(v, "tinystories", "Slots in use").locator(".value")
    expect(slots).to_have_text(f"0 of {SLOTS}")
    # Without a KV cache a worker has four slots: two outputs wait, which hold no slot.
    job = service.client.submit("Once upon", model=SLOW, n=6, max_tokens=450, ignore_eos=True)
    waits = [service.client.submit("Once", model=SLOW, max_tokens=450) for _ in range(60)]
    busy = figure(v, SLOW, "Slots in use")
    expect(busy.locator(".value")).to_have_text("4 of 4")
    expect(busy).to_contain_text("running")
    expect(figure(v, SLOW, "Waiting").locator(".value")).not_to_have_text("0")
    expect(figure(v, SLOW, "Tokens/s")).to_contain_text("while decoding")
    line = figure(v, SLOW, "Slots in use").locator(".spark .line")
    v.page.wait_for_function(
        "line => line.getAttribute('d').split('L').length > 6", arg=line.element_handle()
    )
    if picture.folder:  # waves, for a minute
        for _ in range(6):
            for many in (60, 0):
                for _ in range(many):
                    service.client.submit("Once upon a time", n=4, max_tokens=300)
                v.page.wait_for_timeout(4_000)
        picture(v.page, "playground-queue")
    for each in (job, *waits):
        service.client.cancel(each.id)
    expect(busy.locator(".value")).to_have_text("0 of 4")
    expect(figure(v, SLOW, "Waiting").locator(".value")).to_have_text("0")
    expect(figure(v, SLOW, "Tokens/s")).to_contain_text("idle")


def test_it_is_asked_for_each_second_where_it_is_shown(visit: Any, service: Service) -> None:
    v = visit(key="")
    v.page.clock.install()
    v.page.goto(f"{service.url}/#key={service.api_key}")
    v.until_ready()
    expect(v.at("#pulse")).to_have_text("1 worker")

    v.page.clock.pause_at(datetime.now() + timedelta(seconds=60))

    def asked() -> int:
        return sum(request.url.endswith("/queue") for request in v.requests)

    def silence() -> int:
        """For how many ms of its clock the page asks for nothing."""
        before, ms = asked(), 0
        with v.answered("/queue"):
            while asked() == before:
                v.page.clock.run_for(100)
                ms += 100
        return ms

    def drawn() -> list[float]:
        """When the points of a line were, in seconds; the last at 120."""
        line = v.at(f"[aria-label={SLOW}] .line").first.get_attribute("d")
        return [float(point.split()[0]) for point in line.removeprefix("M").split("L")]

    silence()
    assert silence() >= 4_900
    with v.answered("/queue"):
        v.show("queue")
    assert all(900 <= silence() < 4_900 for _ in range(3))
    assert drawn()[-1] == 120
    steps = [round(later - earlier, 1) for earlier, later in pairwise(drawn())]
    assert steps[-5] >= 4.9  # nobody was looking then
    assert all(0.9 <= step < 4.9 for step in steps[-3:])
    v.show("bulk")
    silence()
    assert silence() >= 4_900
    with v.answered("/queue"):
        v.page.clock.fast_forward(120_000)
    assert drawn() == [120]  # the last two minutes
