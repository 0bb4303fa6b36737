"""Rows that have ended as lines of OpenAI's output and error files, made as they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from api.batches.pages import PageSize
from api.desk import Desk
from api.openai.errors import error_body
from api.openai.schemas import END_OF_TEXT, Choice, Completion
from api.problems import Problem
from slm_jobs.batch_schemas import Batch, ResultLine
from slm_jobs.errors import BatchNotFound

_BYTES_A_LINE = 430  # of a row of one output, besides its text
_BYTES_A_TOKEN = 4.2

Kind = Literal["out", "err"]


class OutputFile(NamedTuple):
    """One of the two files of a batch that has ended."""

    batch: Batch
    kind: Kind

    @property
    def id(self) -> str:
        return f"file-{self.kind}_{self.batch.id.removeprefix('batch_')}"

    @property
    def rows(self) -> int:
        counts = self.batch.counts
        if self.kind == "out":
            return counts.succeeded
        return counts.failed + counts.cancelled + counts.expired

    @property
    def size(self) -> int:
        """About so many: who wants to know it exactly must read all of it."""
        texts = self.batch.usage.completion_tokens * _BYTES_A_TOKEN if self.kind == "out" else 0
        return round(self.rows * _BYTES_A_LINE + texts)

    def pages(self, desk: Desk) -> Iterator[bytes]:
        """Its content in pieces. Blocks. Raises BatchNotFound where some of it is gone meanwhile,
        and StoreUnavailable."""
        batches = desk.store.batches
        read: Callable[[str, int, int], list[ResultLine]] = batches.results
        write: Callable[[ResultLine], dict[str, Any]] = self._output(desk)
        if self.kind == "err":
            read, write = batches.failures, self._error
        told, size = 0, PageSize(self.batch)
        while told < self.rows:
            page = read(self.batch.id, told, size.rows)
            if not page:
                raise BatchNotFound(self.batch.id)
            told += len(page)
            size.learn(len(page), sum(len(row.outputs) for row in page))
            yield b"".join(map(_json_line, map(write, page)))

    def _output(self, desk: Desk) -> Callable[[ResultLine], dict[str, Any]]:
        def write(row: ResultLine) -> dict[str, Any]:
            body = self._completion(row, _before(row, desk) if row.extra.get("echo") else ())
            return self._line(row, {"status_code": 200, "body": body.model_dump()}, None)

        return write

    def _completion(self, row: ResultLine, before: Sequence[str]) -> Completion:
        each = len(row.outputs) // len(row.prompts)
        return Completion(
            id=f"cmpl-{self.batch.id}-{row.seq}",
            created=int(row.finished_at.timestamp()),
            model=self.batch.model,
            choices=[
                Choice(
                    index=output.index,
                    text=(before[output.index // each] if before else "") + output.text,
                    finish_reason=output.finish_reason,
                )
                for output in row.outputs
            ],
            usage=row.usage,
            system_fingerprint=row.fingerprint,
        )

    def _error(self, row: ResultLine) -> dict[str, Any]:
        error = row.error.model_dump() if row.error else {"code": "failed", "message": ""}
        code, message = error["code"], error["message"]
        if code in ("cancelled", "expired"):  # nobody has answered it
            return self._line(row, None, {"code": f"batch_{code}", "message": message})
        invalid = row.line is not None or code == "invalid_request"
        body = error_body(Problem("invalid_request" if invalid else "generation_failed", message))
        body["error"]["code"] = code
        return self._line(row, {"status_code": 400 if invalid else 500, "body": body}, error)

    def _line(
        self, row: ResultLine, response: dict[str, Any] | None, error: dict[str, Any] | None
    ) -> dict[str, Any]:
        request_id = f"{self.batch.id}_{self.kind}_{row.seq}"
        return {
            "id": request_id.replace("batch_", "batch_req_", 1),
            "custom_id": row.custom_id,
            "response": response and {"request_id": request_id, **response},
            "error": error,
        }


def output_files(batch: Batch) -> list[OutputFile]:
    """Those that the batch has, now that it has ended; none before."""
    if not batch.status.is_terminal:
        return []
    files = [OutputFile(batch, "out"), OutputFile(batch, "err")]
    return [file for file in files if file.rows]


def _before(row: ResultLine, desk: Desk) -> list[str]:
    """The row's prompts as texts."""

    def text(prompt: str | list[int]) -> str:
        if prompt == [END_OF_TEXT]:  # in place of an empty one
            return ""
        return prompt if isinstance(prompt, str) else desk.decode(prompt)

    return [text(prompt) for prompt in row.prompts]


def _json_line(line: dict[str, Any]) -> bytes:
    """In ASCII: Python's `splitlines`, for one, takes U+2028 and others for the ends of lines."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
