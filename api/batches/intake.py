"""Takes a batch: its rows go to the store while its file comes in, all of them or none.

Knows no HTTP. Everything here blocks, and runs in one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from api.admission import resolve
from api.batches.content import Content
from api.batches.formats import Format, JsonLine, Record, json_lines, table, text_lines
from api.batches.options import PARAMS, BatchOptions
from api.batches.rows import RowReader, model_named
from api.batches.upload import Taken, Upload, uploaded
from api.desk import Desk
from api.openai.schemas import CompletionRequest
from api.problems import Problem
from slm_jobs.api_keys import KeyProof
from slm_jobs.batch_schemas import Batch, BatchDraft, RowProblem
from slm_jobs.callback_schemas import CallbackTarget
from slm_jobs.schemas import GenerationParams

_PEEKED = 10  # records in which one is looked for that can be read


def take(
    desk: Desk,
    options: BatchOptions,
    content: Content,
    form: Format,
    caller: KeyProof,
    *,
    idempotency_key: str | None = None,
    endpoint: str | None = None,
    extra: dict[str, Any] | None = None,
    reject: bool = False,
    callback: CallbackTarget | None = None,
    request_id: str = "",
) -> Taken:
    """Makes a batch of the file's rows, or finds the one that the Idempotency-Key made.

    With `endpoint` every row must be an OpenAI line to that address (then `form` is "jsonl"), and
    OpenAI's defaults hold. With `reject` a batch with invalid rows, or none, is kept as a failed
    one that tells them, instead of raising `invalid_rows` or `empty_batch`. `extra` is kept with
    the batch, see `BatchDraft`; rows of OpenAI lines with `echo` have `{"echo": True}` as theirs.
    `callback` is what `Desk.targets` made of the options, `request_id` is for logs.

    Raises Problem, a kind of Refused, and StoreUnavailable; see `uploaded` for what then is left.
    """
    found: Iterable[Record] = json_lines(content) if form == "jsonl" else ()
    name = options.model
    if name is None:
        name, found = _model_of(found, desk)
    model = resolve(name, desk.manifest)
    params = _openai_params(model.name) if endpoint else options.params
    reader = RowReader(desk, model, params, template=options.template, endpoint=endpoint)
    if form == "txt":
        reader.check_text()
        found = text_lines(content)
    elif form == "csv":
        found = table(content, reader.columns)

    def fill(upload: Upload) -> Batch:
        content.on_chunk = upload.keep
        for record in found:
            row = reader.read(record)
            if isinstance(row, RowProblem):
                upload.refuse(row)
            else:
                upload.add(row)
            if upload.is_hopeless:
                break
        return upload.end(content.digest, reject=reject)

    draft = BatchDraft(
        model=model.name,
        params=params,
        window_seconds=options.window_seconds,
        name=options.name,
        metadata=options.metadata,
        extra=extra or {},
        callback=callback,
        request_id=request_id,
    )
    return uploaded(
        desk.store.batches,
        draft,
        caller,
        fill,
        skip=options.on_invalid == "skip",
        idempotency_key=idempotency_key,
        digest=content.digest,
    )


def _model_of(found: Iterable[Record], desk: Desk) -> tuple[str | None, Iterator[Record]]:
    """The model that the first row names, if it is an OpenAI line and there is such a model; and
    all records."""
    records = iter(found)
    peeked: list[Record] = []
    name = None
    for record in islice(records, _PEEKED):
        peeked.append(record)
        if isinstance(record, JsonLine):
            with suppress(Problem):
                name = model_named(record)
                break
    return name if name in desk.manifest.models else None, chain(peeked, records)


def _openai_params(model: str) -> GenerationParams:
    """OpenAI's defaults, none of them set by the client."""
    request = CompletionRequest(model=model).job_request()
    values = {name: getattr(request, name) for name in PARAMS}
    return GenerationParams.model_construct(_fields_set=set(), **values)
