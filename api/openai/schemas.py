"""What goes in and out of `/v1`, as OpenAI's clients write and read it. Knows no job's life."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from api.problems import Problem
from slm_jobs.schemas import (
    MAX_PRIORITY,
    MAX_SEQUENCES,
    SEED_LIMIT,
    FinishReason,
    JobRequest,
    Usage,
)

VOCABULARY = 50_257  # of GPT-2's encoding
END_OF_TEXT = 50_256  # stands before every document that the models were trained on

_NULL = {"type": "null"}

# fail_fast: a long list of the wrong type is one mistake, not one for each item.
_Text = Annotated[str, StringConstraints(max_length=100_000)]
_Token = Annotated[int, Field(ge=0, lt=VOCABULARY)]
_Tokens = Annotated[list[_Token], Field(min_length=1, max_length=65_536, fail_fast=True)]
_Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


# `stream_options` only with `stream`.
_OPTIONS_OF_A_STREAM = {
    "stream_options": {
        "anyOf": [
            {"properties": {"stream_options": _NULL}},
            {"properties": {"stream": {"const": True}}, "required": ["stream"]},
        ]
    }
}


def _nullable(schema: dict[str, Any]) -> None:
    """To OpenAI's clients null means: the default."""
    if "stream_options" in schema["properties"]:
        schema["dependentSchemas"] = _OPTIONS_OF_A_STREAM
    for name, field in schema["properties"].items():
        if name in schema.get("required", ()):
            continue
        shown = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        kinds = field.get("anyOf", [field])
        nulls = [] if _NULL in kinds else [_NULL]
        schema["properties"][name] = {"anyOf": [*kinds, *nulls], **shown}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class StreamOptions(Body):
    include_usage: bool = Field(
        False, description="A last chunk without choices tells the `usage` of the whole request."
    )
    include_obfuscation: bool = Field(
        False, description="Not supported: only false.", json_schema_extra={"const": False}
    )


class CompletionRequest(Body):
    """The body of `POST /v1/completions`. null for a field means its default."""

    model: str = Field(description="A name from `GET /v1/models`.")
    prompt: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, max_length=MAX_SEQUENCES, fail_fast=True)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_SEQUENCES, fail_fast=True)]
    ) = Field(
        "",
        description="A text to continue, or its token ids, or a list of either."
        " An empty text: a new document.",
    )
    max_tokens: int = Field(16, ge=1, le=65_536, description="Most tokens to generate.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Sample from the likeliest tokens that reach this probability."
    )
    n: int = Field(1, ge=1, le=MAX_SEQUENCES, description="Continuations per prompt.")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] = Field(
        default_factory=list, description="Generation ends before any of these strings."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Same seed, same text.")
    echo: bool = Field(False, description="Return the prompt before its continuation.")
    stream: bool = Field(False, description="Send the text as server-sent events as it is made.")
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    user: str = Field("", max_length=512, description="Kept as the job's metadata `user`.")

    top_k: int | None = Field(
        None, ge=1, le=65_536, description="Ours: sample from the k likeliest tokens."
    )
    ignore_eos: bool = Field(False, description="Ours: go on past the end-of-text token.")
    priority: int = Field(0, ge=0, le=MAX_PRIORITY, description="Ours: greater goes first.")

    # What we do not have. Clients send these fields with values that ask for nothing.
    best_of: int = Field(1, ge=1, description="Not supported: only 1, or as many as `n`.")
    logprobs: Annotated[int | None, WithJsonSchema(_NULL)] = Field(
        None, description="Not supported."
    )
    suffix: str = Field("", description="Not supported.", json_schema_extra={"maxLength": 0})
    logit_bias: dict[str, float] = Field(
        default_factory=dict, description="Not supported.", json_schema_extra={"maxProperties": 0}
    )
    presence_penalty: float = Field(
        0.0, description="Not supported: only 0.", json_schema_extra={"minimum": 0, "maximum": 0}
    )
    frequency_penalty: float = Field(
        0.0, description="Not supported: only 0.", json_schema_extra={"minimum": 0, "maximum": 0}
    )

    @model_validator(mode="after")
    def _check_together(self) -> CompletionRequest:
        if (count := len(self.prompts)) * self.n > MAX_SEQUENCES:
            raise ValueError(f"{count} prompts x n {self.n} is more than {MAX_SEQUENCES} choices")
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options need stream: true")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as they came: texts, or token ids."""
        prompt: Any = self.prompt
        one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if one else list(prompt)

    def refuse_unsupported(self) -> None:
        """Raises Problem `unsupported_parameter`: better than a text that was not asked for."""
        asked = {
            "best_of": self.best_of not in (1, self.n),
            "logprobs": self.logprobs is not None,
            "suffix": self.suffix,
            "logit_bias": self.logit_bias,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "stream_options": self.stream_options.include_obfuscation,
        }
        names = [name for name, wanted in asked.items() if wanted]
        if names:
            detail = f"Not supported here: {', '.join(names)}. Leave it out."
            errors = [{"pointer": f"/{name}", "detail": "Not supported"} for name in names]
            raise Problem("unsupported_parameter", detail, errors=errors)

    def job_request(self) -> JobRequest:
        """The job that answers it. Its prompt stands for `prompts`, which `Desk.submit` takes
        beside it, because they may be token ids."""
        return JobRequest(
            prompt=" ",
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=self.temperature if self.top_p else 0,
            top_k=self.top_k,
            top_p=self.top_p or 1,
            seed=None if self.seed is None else self.seed % (SEED_LIMIT - MAX_SEQUENCES),
            stop=[self.stop] if isinstance(self.stop, str) else self.stop,
            ignore_eos=self.ignore_eos,
            n=self.n,
            priority=self.priority,
            stream=self.stream,
            metadata={"user": self.user} if self.user else {},
        )


class Choice(BaseModel):
    index: int = Field(description="The choices of prompt p are p * n ... p * n + n - 1.")
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = Field(
        description="null in the chunks of a stream until the last of this choice."
    )


class Completion(BaseModel):
    """The answer, or a chunk of it: then `usage` is there only if it was asked for."""

    id: str = Field(description="`cmpl-` and the id of the job, see `GET /jobs/{id}`.")
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="When the job was made; seconds since 1970.")
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    system_fingerprint: str | None = Field(
        None, description="The same seed gives the same text for the same one."
    )


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When its checkpoint was written; seconds since 1970.")
    owned_by: Literal["slm"] = "slm"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
