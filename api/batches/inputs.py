"""What a line of a JSONL file may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.openai.schemas import CompletionRequest
from slm_jobs.batch_schemas import CustomId
from slm_jobs.schemas import GenerationParams, Prompt

_CONTENT = ("prompt", "variables", "template")  # of which a row needs at least one


class BatchInputRow(GenerationParams):
    """A line of a JSONL file: a `prompt`, or `variables` of a template."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        json_schema_extra={"anyOf": [{"required": [name]} for name in _CONTENT]},
    )

    custom_id: CustomId | None = Field(
        None, description="What its result is called; default: the number of its line."
    )
    prompt: Prompt | None = Field(None, description="The text to continue.")
    template: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="A template of the model; default: that of the batch."
    )
    variables: dict[str, Annotated[str, StringConstraints(max_length=10_000)]] = Field(
        default_factory=dict, max_length=32, description="A text for each variable of the template."
    )


class BatchInputLine(BaseModel):
    """A line of a JSONL file as OpenAI's batches have it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    custom_id: CustomId | None = None
    method: Literal["POST"] = "POST"
    url: Literal["/v1/completions"]
    body: CompletionRequest
