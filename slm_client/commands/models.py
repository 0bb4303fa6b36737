"""`slm models …`: which models there are, and how to add one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from slm_client import checkpoints, manifests, siblings
from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.options import print_json, print_table, screen

models = typer.Typer(no_args_is_help=True, help="List the models, add and check some.")


class _Precision(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


@models.command("list")
def list_models(
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List the models of a running service, and their templates.

    Examples:

    \b
      slm models list
      slm models list --json
    """
    with options.connect(url, api_key, data_dir) as client:
        found = client.models()
    if as_json:
        print_json(found)
    else:
        print_table(("model", "context#", "workers#", "templates"), map(_row, found))


@models.command()
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What jobs will call it: a-z, 0-9, '.', '_', '-'.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="A checkpoint folder, a GPT-2 folder of Hugging Face's format, or the id of one "
            "on its hub.",
            show_default=False,
        ),
    ],
    precision: Annotated[
        _Precision, typer.Option(help="How its numbers are kept; auto: the fastest good one.")
    ] = _Precision.AUTO,
    data_dir: Annotated[
        Path, typer.Option(help="Data folder of the `slm up` that shall serve it.")
    ] = options.DEFAULT_DATA_DIR,
) -> None:
    """Add a model to those that `slm up` serves from its next start on.

    Copies the weights into the data folder, as a checkpoint, and writes an entry into its
    models.toml. Only safetensors are read; a hub's models need `pip install 'slm-jobs[hub]'`.

    Examples:

    \b
      slm models add gpt2 --from gpt2
      slm models add mine --from runs/mine
      slm models add poems --from ./gpt2-poems --precision bf16
    """
    target = manifests.place_for(data_dir, name)
    folder = checkpoints.find(source)
    with screen.status(f"adding {name}…"):
        checkpoints.put(folder, target)
    manifests.add_entry(data_dir, name, {"precision": precision.value})
    screen.print(
        f"Added {name}, in {target}. `slm models check` checks it; `slm up` serves it from its "
        "next start on.",
        markup=False,
        soft_wrap=True,
    )


@models.command()
def check(
    data_dir: Annotated[
        Path, typer.Option(help="Data folder with the models.toml to check.")
    ] = options.DEFAULT_DATA_DIR,
) -> None:
    """Check all entries that `slm up` would serve, the packaged ones too.

    Exit code: 0 if it would serve them, 1 if not.

    Examples:

    \b
      slm models check
      slm models check --data-dir /var/lib/slm
    """
    models_file = manifests.models_file(data_dir)
    env = {"SLM_MODELS_FILE": models_file} if models_file else {}
    done = siblings.run(siblings.module("slm_jobs.manifest"), env=env)
    raise typer.Exit(done.returncode)


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    name = f"{model['name']} (default)" if model.get("default") else model["name"]
    templates = ", ".join(_template_names(model))
    return name, model.get("context_length"), model.get("workers"), templates


def _template_names(model: dict[str, Any]) -> list[str]:
    """Each with its variables."""
    return [
        f"{name}({', '.join(template.get('variables') or ())})"
        for name, template in (model.get("templates") or {}).items()
    ]
