"""Options that several commands share, and the screen they write to."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from slm_client.job import Params

# Results go to standard output, everything else here.
screen = Console(stderr=True, highlight=False)

Url = Annotated[str, typer.Option("--url", envvar="SLM_URL", help="Address of the service.")]
Model = Annotated[
    str | None, typer.Option(help="A name from GET /models.", show_default="the service's default")
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens to generate.")]
Temperature = Annotated[
    float, typer.Option(min=0, max=5, help="0 always takes the likeliest token.")
]
TopK = Annotated[
    int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0: from all of them.")
]
TopP = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Sample from the likeliest tokens that reach this probability."
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Same seed, same text.", show_default="drawn")
]


def sampling(
    model: str | None,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
) -> Params:
    """The options above as fields of a job."""
    return Params(
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        seed=seed,
    )
