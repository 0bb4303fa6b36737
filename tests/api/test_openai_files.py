"""`/v1/files`, through OpenAI's client and by hand."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable
from typing import Any

import anyio
import openai
import pytest
from fakeredis import FakeRedis
from openai.types import FileDeleted, FileObject
from starlette.testclient import TestClient

from slm_jobs import files, keys
from slm_jobs.api_keys import KeySettings, NewKey
from slm_jobs.settings import Settings
from slm_jobs.store import JobStore
from tests.api.openai_batch_calls import (
    asgi,
    claim,
    connect,
    content,
    finish,
    line,
    lines_of,
    raises,
    run,
    upload,
)
from tests.api.openai_calls import error

BOUNDARY = "x-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
FILE = ("file", content(line()), "rows.jsonl")
PURPOSE = ("purpose", b"batch", None)


@pytest.fixture
def api(client: TestClient, key: NewKey) -> openai.OpenAI:
    return connect(client, key)


def form(parts: Iterable[tuple[str, bytes, str | None]]) -> bytes:
    text = b""
    for name, value, filename in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        text += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}'.encode()
        text += b"\r\n\r\n" + value + b"\r\n"
    return text + f"--{BOUNDARY}--\r\n".encode()


def kept(redis: FakeRedis) -> list[str]:
    return sorted(name for name in redis.keys("*") if "file" in name)


def test_a_file_is_kept_listed_read_and_deleted(api: openai.OpenAI) -> None:
    sent = content(line("a"), line("b"))
    file = api.files.create(file=("rows ☃.jsonl", sent), purpose="batch")
    assert isinstance(file, FileObject)
    assert (file.object, file.purpose, file.status) == ("file", "batch", "processed")
    assert (file.filename, file.bytes) == ("rows ☃.jsonl", len(sent))
    assert file.expires_at == file.created_at + 7 * 86_400
    assert api.files.retrieve(file.id) == file
    assert list(api.files.list()) == [file]
    answer = api.files.content(file.id)
    assert answer.content == sent
    assert answer.response.headers["content-length"] == str(len(sent))
    deleted = api.files.delete(file.id)
    assert isinstance(deleted, FileDeleted)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with raises(openai.NotFoundError, "file_not_found"):
        api.files.retrieve(file.id)
    assert list(api.files.list()) == []


@pytest.mark.parametrize("parts", [[FILE, PURPOSE], [PURPOSE, FILE]])
def test_fields_may_come_before_the_file_or_after_it(client: TestClient, parts: Any) -> None:
    answer = client.post("/v1/files", content=form(parts), headers=FORM)
    assert answer.status_code == 200, answer.text
    assert FileObject.model_validate(answer.json(), strict=True).filename == "rows.jsonl"
    assert client.get(f"/v1/files/{answer.json()['id']}/content").content == FILE[1]


@pytest.mark.parametrize(("seconds", "kept_seconds"), [(3_600, 3_600), (2_592_000, 7 * 86_400)])
def test_files_expire_as_asked_but_no_later_than_all(
    api: openai.OpenAI, redis: FakeRedis, seconds: int, kept_seconds: int
) -> None:
    after: Any = {"anchor": "created_at", "seconds": seconds}
    file = api.files.create(file=content(line()), purpose="batch", expires_after=after)
    assert file.expires_at == file.created_at + kept_seconds
    assert redis.ttl(keys.FILE + file.id) in range(kept_seconds - 5, kept_seconds + 1)


@pytest.mark.parametrize(
    ("parts", "status", "code", "param"),
    [
        ([FILE], 400, "invalid_request", "purpose"),
        ([PURPOSE], 400, "invalid_request", "file"),
        ([PURPOSE, ("file", b"", "rows.jsonl")], 400, "invalid_request", "file"),
        ([FILE, ("purpose", b"fine-tune", None)], 400, "unsupported_parameter", "purpose"),
        ([("purpose", b"vision", None), FILE], 400, "unsupported_parameter", "purpose"),
        ([FILE, FILE, PURPOSE], 400, "invalid_request", "file"),
        ([PURPOSE, PURPOSE, FILE], 400, "invalid_request", "purpose"),
        ([FILE, PURPOSE, ("extra", b"1", None)], 400, "invalid_request", "extra"),
        (
            [FILE, PURPOSE, ("expires_after[seconds]", b"60", None)],
            400,
            "invalid_request",
            "expires_after[seconds]",
        ),
        (
            [FILE, PURPOSE, ("expires_after[seconds]", b"soon", None)],
            400,
            "invalid_request",
            "expires_after[seconds]",
        ),
        (
            [FILE, PURPOSE, ("expires_after[anchor]", b"now", None)],
            400,
            "invalid_request",
            "expires_after[anchor]",
        ),
        ([FILE, ("purpose", b"\xff", None)], 400, "malformed_multipart", None),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_kept(
    client: TestClient, redis: FakeRedis, parts: Any, status: int, code: str, param: str | None
) -> None:
    error(client.post("/v1/files", content=form(parts), headers=FORM), status, code, param)
    assert kept(redis) == []


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (FORM, 400, "malformed_multipart"),
        ({"Content-Type": "multipart/form-data"}, 400, "malformed_multipart"),
        ({"Content-Type": "application/json"}, 415, "unsupported_media_type"),
        ({}, 415, "unsupported_media_type"),
    ],
)
def test_a_form_that_cannot_be_read(
    client: TestClient, redis: FakeRedis, headers: dict[str, str], status: int, code: str
) -> None:
    unfinished = form([PURPOSE, FILE]).removesuffix(f"--{BOUNDARY}--\r\n".encode())
    error(client.post("/v1/files", content=unfinished, headers=headers), status, code)
    assert kept(redis) == []


def test_a_message_names_the_purpose_that_there_is(api: openai.OpenAI) -> None:
    with raises(openai.BadRequestError, "unsupported_parameter") as message:
        api.files.create(file=b"x", purpose="fine-tune")
    assert "'batch'" in message[0]
    assert "'fine-tune'" in message[0]


class TestLimits:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_batch_bytes": 100_000})

    def test_a_file_is_so_large_and_no_larger(self, api: openai.OpenAI, redis: FakeRedis) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            api.files.create(file=b"x" * 100_001, purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
        assert kept(redis) == []
        assert api.files.create(file=b"x" * 100_000, purpose="batch").bytes == 100_000

    def test_unpacked_too(self, api: openai.OpenAI) -> None:
        packed = gzip.compress(content(line(prompt="a " * 45)) * 2_000)
        assert len(packed) < 100_000
        file = api.files.create(file=("rows.jsonl.gz", packed), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            api.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
        assert list(api.batches.list()) == []

    def test_a_key_has_so_many_files(
        self, api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "MOST_FILES", 2)
        first, _ = upload(api, line()), upload(api, line())
        with raises(openai.BadRequestError, "too_many_files"):
            upload(api, line())
        api.files.delete(first.id)
        upload(api, line())


def test_who_leaves_meanwhile_leaves_nothing(client: TestClient, redis: FakeRedis) -> None:
    whole = form([PURPOSE, ("file", content(line()) * 5_000, "rows.jsonl")])
    parts = [whole[i : i + 50_000] for i in range(0, len(whole), 50_000)][:5]
    seen: list[int] = []

    async def receive() -> Any:
        await anyio.sleep(0)
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": True}
        seen.append(len(await anyio.to_thread.run_sync(kept, redis)))
        return {"type": "http.disconnect"}

    sent = asgi(client, "POST", "/v1/files", receive, content_type=FORM["Content-Type"])
    assert seen[0] == 1  # some of it had come
    assert kept(redis) == []
    assert sent == []


def test_a_list_is_read_in_pages(api: openai.OpenAI) -> None:
    made = [upload(api, line()).id for _ in range(5)]
    assert [file.id for file in api.files.list(limit=2, order="asc")] == sorted(made)
    assert [file.id for file in api.files.list(limit=2)] == sorted(made, reverse=True)
    page = api.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == (sorted(made)[:2], True)
    last = api.files.list(limit=5)
    assert (len(last.data), last.has_more) == (5, False)


def test_a_list_goes_on_behind_what_was_deleted(api: openai.OpenAI) -> None:
    made = [upload(api, line()).id for _ in range(5)]
    for order in ("desc", "asc"):
        seen = []
        for file in api.files.list(limit=2, order=order):  # type: ignore[arg-type]
            seen.append(file.id)
            if order == "asc":
                api.files.delete(file.id)
        assert sorted(seen) == sorted(made)
    assert list(api.files.list()) == []


def test_batches_have_files(api: openai.OpenAI, store: JobStore, client: TestClient) -> None:
    batch = run(api, line("a"), line("b"))
    assert [file.purpose for file in api.files.list()] == ["batch"]
    works = claim(store)
    assert client.get(f"/v1/files/file-out_{batch.id[6:]}").status_code == 404  # it runs
    store.hand_back(works)
    finish(store)
    [output] = api.files.list(purpose="batch_output")
    assert output.id == api.batches.retrieve(batch.id).output_file_id
    assert api.files.retrieve(output.id) == output
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert output.expires_at
    assert output.created_at < output.expires_at
    size = len(api.files.content(output.id).content)
    assert size / 2 < output.bytes < size * 2
    assert {file.purpose for file in api.files.list()} == {"batch", "batch_output"}
    assert list(api.files.list(purpose="fine-tune")) == []
    with raises(openai.BadRequestError, "unsupported_parameter") as message:
        api.files.delete(output.id)
    assert batch.id in message[0]
    assert client.delete(f"/batches/{batch.id}").status_code == 204
    with raises(openai.NotFoundError, "file_not_found"):
        api.files.content(output.id)


def test_other_keys_see_nothing(
    client: TestClient, store: JobStore, api: openai.OpenAI, key: NewKey, admin: NewKey
) -> None:
    stranger = connect(client, store.keys.create(KeySettings(name="stranger")))
    file = upload(api, line())
    batch = run(api, line())
    finish(store)
    for file_id in (file.id, f"file-out_{batch.id.removeprefix('batch_')}"):
        for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
            with raises(openai.NotFoundError, "file_not_found"):
                call(file_id)
        assert connect(client, admin).files.retrieve(file_id) == api.files.retrieve(file_id)
        assert connect(client, admin).files.content(file_id).content
    with raises(openai.PermissionDeniedError, "forbidden"):
        connect(client, admin).files.delete(file.id)
    assert list(stranger.files.list()) == []
    api.files.delete(file.id)


@pytest.mark.parametrize("file_id", ["file-1", "file-out_1", "x" * 100, "file-" + "é" * 26])
def test_an_id_of_another_form_is_nobodys(client: TestClient, file_id: str) -> None:
    for suffix in ("", "/content"):
        error(client.get(f"/v1/files/{file_id}{suffix}"), 404, "file_not_found")
    error(client.delete(f"/v1/files/{file_id}"), 404, "file_not_found")
    error(client.get("/v1/files", params={"after": file_id}), 400, "invalid_request")


def test_uploads_at_once_do_not_mix(client: TestClient, key: NewKey) -> None:
    made: dict[int, str] = {}

    def send(i: int) -> None:
        made[i] = upload(connect(client, key), *(line(f"{i}-{j}") for j in range(300))).id

    threads = [threading.Thread(target=send, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    api = connect(client, key)
    for i, file_id in made.items():
        assert lines_of(api, file_id) == [line(f"{i}-{j}") for j in range(300)]
    assert len(made) == 12
