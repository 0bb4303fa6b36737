"""What docs/api.md says of callbacks is so."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from standardwebhooks import Webhook
from starlette.testclient import TestClient

from slm_jobs import callback_urls
from slm_jobs.callback_schemas import BatchEventName, JobEventName
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.callback_calls import CALLBACK, due, run, take_job
from tests.docs.pages import section
from worker.callbacks import delivery

SECTION = section("docs/api.md", "Callbacks")


def block(kind: str) -> str:
    [found] = re.findall(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)
    return str(found)


def names_in_table(docstring: str | None) -> set[str]:
    """The first words of the indented lines of a table."""
    return set(re.findall(r"^    ([a-z_<>]+)  +\S", docstring or "", re.MULTILINE))


def test_a_callback_looks_as_it_is_shown(client: TestClient, store: JobStore) -> None:
    shown = json.loads(block("http").partition("\n\n")[2])
    take_job(client, **CALLBACK, callback_outputs=True)
    run(store)
    [one] = due(store)
    sent = json.loads(one.payload)
    assert (list(sent), sent["type"]) == (list(shown), shown["type"])
    assert sent["data"].keys() == shown["data"].keys()
    for name, value in shown["data"].items():
        assert type(sent["data"][name]) is type(value), name


def test_the_receiver_works(
    client: TestClient,
    store: JobStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [secret] = client.get("/callbacks/secret").json()["secrets"]
    monkeypatch.setenv("SLM_CALLBACK_SECRET", secret["secret"])
    code: dict[str, Any] = {}
    exec(block("python"), code)  # noqa: S102
    take_job(client, **CALLBACK)
    run(store)
    [one] = due(store)

    def headers(minutes: int = 0) -> dict[str, str]:
        at = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()) - 60 * minutes, UTC)
        signed = Webhook(one.secrets[0]).sign(one.id, at, one.payload.decode())
        return {
            "webhook-id": one.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signed,
        }

    receive = code["receive"]
    assert [receive(one.payload, headers()) for _ in range(2)] == [204, 204]
    assert capsys.readouterr().out.count("job.succeeded") == 1
    assert receive(one.payload.replace(b"tiny", b"huge"), headers()) == 401
    assert receive(b"\xff", headers()) == 401
    assert receive(one.payload, headers(6)) == 401
    assert receive(one.payload, headers() | {"webhook-id": "x"}) == 401
    assert receive(one.payload, headers() | {"webhook-signature": "nonsense"}) == 401
    assert receive(one.payload, {}) == 401


def test_nothing_is_left_out() -> None:
    events = {f"job.{name}" for name in get_args(JobEventName)}
    events |= {f"batch.{name}" for name in get_args(BatchEventName)}
    assert set(re.findall(r"`((?:job|batch)\.[a-z]+)`", SECTION)) == events
    for code in names_in_table(callback_urls.__doc__) | names_in_table(delivery.__doc__):
        assert f"`{code}`" in SECTION or code == "internal_error", code
    pauses = Settings.model_fields["callback_schedule_seconds"].default
    assert pauses == (0, 5, 300, *(hours * 3600 for hours in (0.5, 2, 5, 10, 14, 20, 24)))
    assert "after 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 h" in SECTION
