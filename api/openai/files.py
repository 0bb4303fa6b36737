"""`/v1/files`: files for `/v1/batches`, and what comes of them, as OpenAI has them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio import BrokenResourceError
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse

from api.auth import Viewer
from api.batches.body import MULTIPART
from api.batches.content import limited
from api.batches.multipart import parts
from api.batches.uploads import Turn, Uploads
from api.body import MAX_BODY_BYTES
from api.desk import Desk
from api.links import FILE_LINKS
from api.openai.batch_lines import OutputFile, output_files
from api.openai.batch_schemas import (
    FILE_ID,
    FileDeleted,
    FileList,
    FileObject,
    unsupported,
)
from api.openai.batches import newest
from api.openai.errors import errors
from api.openai.file_form import FORM, keep
from api.problems import Problem
from slm_jobs.errors import BatchNotFound, FileNotFound, SlmJobsError
from slm_jobs.files import File

_BATCHES_LISTED = 1_000  # of which a list shows the files: the newest
_OUTPUT = re.compile(r"file-(out|err)_(\w+)")
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

AnyFile = File | OutputFile

log = logging.getLogger(__name__)


def visible_file(
    request: Request,
    viewer: Viewer,
    file_id: Annotated[str, Path(alias="id", description="As `POST /v1/files` returned it.")],
) -> AnyFile:
    """The file, for its owner and for admins. Raises FileNotFound."""
    if not re.fullmatch(FILE_ID, file_id):
        raise FileNotFound(file_id)
    desk: Desk = request.app.state.desk
    if not (match := _OUTPUT.fullmatch(file_id)):
        return desk.store.files.get(file_id, viewer=viewer)
    try:
        batch = desk.store.batches.get(f"batch_{match[2]}", viewer=viewer)
    except BatchNotFound:
        raise FileNotFound(file_id) from None
    for file in output_files(batch):
        if file.id == file_id:
            return file
    raise FileNotFound(file_id)


VisibleFile = Annotated[AnyFile, Depends(visible_file)]


def router(desk: Desk, uploads: Uploads) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["openai"])

    def shown(file: AnyFile) -> FileObject:
        if isinstance(file, File):
            return FileObject(
                id=file.id,
                bytes=file.bytes,
                created_at=int(file.created_at.timestamp()),
                expires_at=int(file.expires_at.timestamp()),
                filename=file.filename,
                purpose="batch",
            )
        batch = file.batch
        gone = (batch.finished_at or batch.created_at) + timedelta(
            seconds=desk.settings.batch_ttl_seconds
        )
        return FileObject(
            id=file.id,
            bytes=file.size,
            created_at=int(batch.created_at.timestamp()),
            expires_at=int(gone.timestamp()),
            filename=_filename(file),
            purpose="batch_output",
        )

    @routes.post(
        "/files",
        summary="Upload a file",
        openapi_extra={"requestBody": FORM},
        responses={
            200: {"links": FILE_LINKS},
            **errors(
                "unauthorised",
                "body_timeout",
                "body_too_large",
                "unsupported_media_type",
                "invalid_request",
                "malformed_multipart",
                "unsupported_parameter",
                "too_many_files",
                "too_many_uploads",
                "queue_full",
                "store_unavailable",
            ),
        },
    )
    async def create_file(viewer: Viewer, request: Request) -> FileObject:
        """Keeps a file for `POST /v1/batches`, for a week or as long as `expires_after` says if
        that is shorter. It is looked into then only."""
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != MULTIPART:
            detail = f"Send a form: {MULTIPART}, not {kind[:64] or 'what has no Content-Type'}."
            raise Problem("unsupported_media_type", detail, headers={"Accept": MULTIPART})

        def run(_: Turn, body: Iterator[bytes]) -> File:
            most = desk.settings.max_batch_bytes + MAX_BODY_BYTES  # a file, and what is around it
            form = limited(body, most)
            return keep(desk, parts(form, kind), viewer.id)

        return shown(await uploads.receive(request, viewer.id, run))

    @routes.get(
        "/files",
        summary="List your files",
        responses=errors("unauthorised", "invalid_request", "store_unavailable"),
    )
    def list_files(
        viewer: Viewer,
        purpose: Annotated[
            str | None, Query(max_length=64, description="`batch` or `batch_output`.")
        ] = None,
        order: Literal["asc", "desc"] = "desc",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        after: Annotated[
            str | None, Query(pattern=FILE_ID, description="`last_id` of the page before.")
        ] = None,
    ) -> FileList:
        """The files of your key, and those of its newest 1,000 batches, which stand where their
        batches were made."""
        found: list[AnyFile] = []
        if purpose in (None, "batch"):
            found += desk.store.files.of_key(viewer.id)
        if purpose in (None, "batch_output"):
            batches = islice(newest(desk, viewer.id), _BATCHES_LISTED)
            found += (file for batch in batches for file in output_files(batch))
        found.sort(key=lambda file: _place(file.id), reverse=order == "desc")
        if after:  # it may be deleted; its place is known all the same
            place = _place(after)
            found = [
                file
                for file in found
                if (_place(file.id) < place if order == "desc" else _place(file.id) > place)
            ]
        data = [shown(file) for file in found[:limit]]
        return FileList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(found) > limit,
        )

    @routes.get(
        "/files/{id}",
        summary="Read a file's description",
        responses=errors("unauthorised", "file_not_found", "store_unavailable"),
    )
    def get_file(file: VisibleFile) -> FileObject:
        """What is known about a file but its content."""
        return shown(file)

    @routes.get(
        "/files/{id}/content",
        summary="Read a file",
        response_class=StreamingResponse,
        responses={
            **_CONTENT,
            **errors("unauthorised", "file_not_found", "store_unavailable"),
        },
    )
    def get_file_content(file: VisibleFile, request: Request) -> StreamingResponse:
        """The file as it was uploaded; or what came of a batch's rows, a JSON object a line, in the
        order in which they ended."""
        if isinstance(file, File):
            headers = {"Content-Length": str(file.bytes), "ETag": f'"{file.sha256}"'}
            return _download(request, desk.store.files.content(file), file.filename, headers)
        return _download(request, file.pages(desk), _filename(file))

    @routes.delete(
        "/files/{id}",
        summary="Delete a file",
        responses=errors(
            "unauthorised",
            "forbidden",
            "file_not_found",
            "unsupported_parameter",
            "store_unavailable",
        ),
    )
    def delete_file(file: VisibleFile, viewer: Viewer) -> FileDeleted:
        """The file is gone at once; batches that were made of it run on."""
        if isinstance(file, OutputFile):
            detail = f"{file.id} goes with its batch: DELETE /batches/{file.batch.id}."
            raise unsupported("id", detail)
        if file.key != viewer.id:
            raise Problem("forbidden", "Only the key that uploaded a file may delete it.")
        desk.store.files.delete(file)
        return FileDeleted(id=file.id)

    return routes


def _place(file_id: str) -> tuple[str, str]:
    """Where it stands in a list: by the time in its ULID."""
    return file_id[-26:], file_id


def _filename(file: OutputFile) -> str:
    return f"{file.batch.id}_{'output' if file.kind == 'out' else 'error'}.jsonl"


def _download(
    request: Request,
    content: Iterator[bytes],
    filename: str,
    headers: Mapping[str, str] | None = None,
) -> StreamingResponse:
    def pieces() -> Iterator[bytes]:
        try:
            yield from content
        except SlmJobsError as error:
            extra = {"request_id": request.state.request_id}
            log.warning("a file breaks off: %s", error, extra=extra)
            raise BrokenResourceError from error  # which ends the connection, not the answer

    disposition = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
    return StreamingResponse(
        pieces(),
        headers={"Content-Disposition": disposition, **(headers or {})},
        media_type="application/octet-stream",
    )
