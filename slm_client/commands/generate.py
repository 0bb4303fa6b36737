"""`slm generate`: one prompt, one story."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from slm_client.client import DEFAULT_URL, Client
from slm_client.commands import options
from slm_client.commands.options import screen


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    model: options.Model = None,
    max_tokens: options.MaxTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole job as JSON.")] = False,
    url: options.Url = DEFAULT_URL,
) -> None:
    """Continue one prompt and print the story.

    Examples:

    \b
      slm generate "Once upon a time"
      slm generate "The dog ran" --temperature 0 --max-tokens 50
      slm generate "Lily had a red ball." --seed 7 --json
    """
    params = options.sampling(model, max_tokens, temperature, top_k, top_p, seed)
    with Client(url, retry_for=3.0) as client, screen.status("generating…"):
        job = client.generate(prompt, **params)
    print(json.dumps(job.raw, indent=2, ensure_ascii=False) if as_json else prompt + job.text)  # noqa: T201
