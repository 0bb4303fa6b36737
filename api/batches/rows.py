"""From a record of a file to a row that may run, or what is wrong with it.

Knows no file formats and no store. Most rows take a short way: straight from their bytes into a
checked model. Only what fails there is read again, by the code that can say why.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.batches.formats import Cells, Columns, JsonLine, Record, TextLine
from api.batches.inputs import BatchInputLine, BatchInputRow
from api.batches.options import PARAMS, cell_values
from api.body import check, load
from api.desk import Desk
from api.openai.schemas import END_OF_TEXT, CompletionRequest
from api.problems import Problem
from slm_jobs.batch_schemas import BatchRow, RowProblem
from slm_jobs.errors import TemplateError
from slm_jobs.manifest import ModelSpec, Template
from slm_jobs.schemas import GenerationParams, JobRequest

ENDPOINT = "/v1/completions"
_SHOWN = 500  # characters of a message
_OPENAI_FIELDS = {"body", "url", "method"}

M = TypeVar("M", bound=BaseModel)


class RowReader:
    """Reads the rows of one batch.

    `params` are what rows take that do not say otherwise; those among them that were set hold for
    OpenAI's lines too, in place of OpenAI's defaults. With `endpoint` every row must be an OpenAI
    line to that address. Raises Problem if the template does not exist.
    """

    def __init__(
        self,
        desk: Desk,
        model: ModelSpec,
        params: GenerationParams,
        *,
        template: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._desk = desk
        self._model = model
        self._params = params
        self._endpoint = endpoint
        self._template = template
        if template is not None and template not in model.templates:
            detail = _no_template(template, model)
            errors = [{"pointer": "/template", "detail": detail}]
            known = list(model.templates)
            raise Problem("unknown_template", detail, errors=errors, templates=known)
        self._usual: type[BatchInputRow | BatchInputLine] = (
            BatchInputLine if endpoint else BatchInputRow
        )

    @property
    def columns(self) -> Columns:
        """Of tables."""
        template = self._batch_template
        needed = tuple(template.variables) if template else ("prompt",)
        return Columns(needed, ("custom_id", *(name for name in PARAMS if name not in needed)))

    def check_text(self) -> None:
        """Raises Problem unless a line of text is all that a row needs."""
        template = self._batch_template
        if template and len(template.variables) != 1:
            names = ", ".join(template.variables) or "none"
            detail = f"Text files are for templates of one variable; this one's are: {names}."
            errors = [{"pointer": "/template", "detail": detail}]
            raise Problem("invalid_request", detail, errors=errors)

    def read(self, record: Record) -> BatchRow | RowProblem:
        if isinstance(record, RowProblem):
            return record
        try:
            match record:
                case JsonLine(line, raw):
                    return self._json(line, raw)
                case TextLine(line, text):
                    return self._own(line, _checked(BatchInputRow, self._text(text)))
                case Cells(line, cells):
                    return self._own(line, _checked(BatchInputRow, self._cells(cells)))
        except _Wrong as wrong:
            return wrong.at(record.line)

    @property
    def _batch_template(self) -> Template | None:
        return self._model.templates[self._template] if self._template else None

    def _text(self, text: str) -> dict[str, Any]:
        template = self._batch_template
        return (
            {"variables": {next(iter(template.variables)): text}} if template else {"prompt": text}
        )

    def _cells(self, cells: dict[str, str]) -> dict[str, Any]:
        template = self._batch_template
        if not template:
            return cell_values(cells)
        variables = {name: cells[name] for name in template.variables}
        others = {name: text for name, text in cells.items() if name not in variables}
        return {**cell_values(others), "variables": variables}

    def _json(self, line: int, raw: bytes) -> BatchRow:
        try:
            found = self._usual.model_validate_json(raw, strict=True)
        except ValidationError:
            found = self._explained(raw)
            self._usual = type(found)
        return (
            self._own(line, found) if isinstance(found, BatchInputRow) else self._line(line, found)
        )

    def _explained(self, raw: bytes) -> BatchInputRow | BatchInputLine:
        """Raises _Wrong."""
        try:
            data = load(raw.rstrip(b"\r\n"))
        except Problem as problem:
            code = "not_utf8" if "UTF-8" in problem.detail else "malformed_json"
            message = problem.detail.replace("The body", "The line").replace("line 1, ", "")
            raise _Wrong(message, code=code) from None
        if isinstance(data, str) and not self._endpoint:
            data = {"prompt": data}
        try:
            if self._endpoint or (isinstance(data, dict) and data.keys() & _OPENAI_FIELDS):
                return _checked_line(data)
            return _checked(BatchInputRow, data)
        except _Wrong as wrong:
            wrong.custom_id = _custom_id(data)
            raise

    def _own(self, line: int, row: BatchInputRow) -> BatchRow:
        try:
            prompt = self._prompt(row)
            own = {
                name: value
                for name in row.model_fields_set
                if name in PARAMS and (value := getattr(row, name)) != getattr(self._params, name)
            }
            _keep_seed(own, row.seed)
            return self._row(line, row.custom_id, [prompt], own, {})
        except _Wrong as wrong:
            wrong.custom_id = row.custom_id
            raise

    def _prompt(self, row: BatchInputRow) -> str:
        if row.prompt is not None:
            if row.template is not None or row.variables:
                raise _Wrong("Send either a prompt, or variables of a template")
            return row.prompt
        name = row.template or self._template
        if name is None:
            raise _Wrong("Send a prompt, or a template and its variables")
        if name not in self._model.templates:
            raise _Wrong(f"/template: {_no_template(name, self._model)}")
        try:
            return self._model.templates[name].render(row.variables)
        except TemplateError as error:
            raise _Wrong(f"/variables: {error}") from None

    def _line(self, line: int, found: BatchInputLine) -> BatchRow:
        try:
            request = self._request(found.body)
            given = self._params.model_fields_set - found.body.model_fields_set
            own = {
                name: value
                for name in PARAMS
                if name not in given
                and (value := getattr(request, name)) != getattr(self._params, name)
            }
            _keep_seed(own, request.seed)
            prompts = [prompt or [END_OF_TEXT] for prompt in found.body.prompts]
            extra = {"echo": True} if found.body.echo else {}
            return self._row(line, found.custom_id, prompts, own, extra)
        except _Wrong as wrong:
            wrong.custom_id = found.custom_id
            raise

    def _request(self, body: CompletionRequest) -> JobRequest:
        if body.model != self._model.name:
            known = self._desk.manifest.models
            if body.model in known:
                message = f"the batch runs on {self._model.name}, and all of its rows must"
            else:
                message = f"no model {body.model[:64]!r}; there are: {', '.join(known)}"
            raise _Wrong(f"/body/model: {message}", code="unknown_model")
        if body.stream or body.priority:
            raise _Wrong("/body: stream and priority are not for rows of a batch")
        try:
            body.refuse_unsupported()
        except Problem as problem:
            raise _Wrong(f"/body: {problem.detail}") from None
        return body.job_request()

    def _row(
        self,
        line: int,
        custom_id: str | None,
        prompts: list[str | list[int]],
        own: dict[str, Any],
        extra: dict[str, Any],
    ) -> BatchRow:
        max_tokens = own.get("max_tokens", self._params.max_tokens)
        outputs = len(prompts) * own.get("n", self._params.n)
        total = outputs * max_tokens
        for prompt in prompts:
            tokens = self._desk.count_tokens(prompt)
            total += tokens
            if tokens + max_tokens > self._model.context_length:
                message = (
                    f"{tokens} prompt tokens + {max_tokens} max_tokens = {tokens + max_tokens}, "
                    f"more than the context of {self._model.context_length}"
                )
                raise _Wrong(message, code="prompt_too_long")
        return BatchRow(custom_id or str(line), line, prompts, own, total, outputs, extra)


class _Wrong(Exception):
    def __init__(self, message: str, *, code: str = "invalid_row") -> None:
        self.message = message
        self.code = code
        self.custom_id: str | None = None

    def at(self, line: int) -> RowProblem:
        # What a client wrote may be no valid Unicode; then it can be neither sent nor stored.
        message = self.message[:_SHOWN].removesuffix(".").encode("utf-8", "replace").decode()
        return RowProblem(line=line, code=self.code, message=message, custom_id=self.custom_id)


def model_named(record: JsonLine) -> str | None:
    """The model that an OpenAI line names; None for other rows. Raises Problem if it is no JSON."""
    data = load(record.raw)
    body = data.get("body") if isinstance(data, dict) else None
    name = body.get("model") if isinstance(body, dict) else None
    return name if isinstance(name, str) else None


def _checked(model: type[M], data: Any) -> M:
    """Raises _Wrong."""
    try:
        return check(model, data)
    except Problem as problem:
        found = [f"{e['pointer']}: {e['detail']}".removeprefix(": ") for e in problem.errors]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    raise _Wrong("; ".join(found[:3]) + more)


def _checked_line(data: Any) -> BatchInputLine:
    """Raises _Wrong."""
    url = data.get("url") if isinstance(data, dict) else None
    if isinstance(url, str) and url != ENDPOINT:
        detail = f"/url: only {ENDPOINT} is served, which takes a prompt in place of messages"
        raise _Wrong(detail)
    return _checked(BatchInputLine, data)


def _custom_id(data: Any) -> str | None:
    """That of a row that is wrong, if it can be shown."""
    found = data.get("custom_id") if isinstance(data, dict) else None
    if not isinstance(found, str) or not 1 <= len(found) <= 256:
        return None
    return found if found.isprintable() or found.isascii() else None


def _keep_seed(own: dict[str, Any], seed: int | None) -> None:
    """A seed of its own stays, also where it is that of the batch, which counts on from there."""
    own.pop("seed", None)
    if seed is not None:
        own["seed"] = seed


def _no_template(name: str, model: ModelSpec) -> str:
    known = ", ".join(model.templates)
    there = f"there are: {known}" if known else "it has none"
    return f"{model.name} has no template {name[:64]!r}; {there}."
