"""What a model is made of: the tensors on the way through it, and where its parameters are.

`python -m slm_core.describe --help`. Reads only the heads of weight files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open

from slm_core.checkpoint import CONFIG, WEIGHTS, read_config, read_perplexity
from slm_core.command import command_line
from slm_core.config import PRESETS, GPTConfig
from slm_core.errors import CheckpointError
from slm_core.model import empty_model

_BY = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Row:
    """One tensor on the way: what makes it, its shape in letters and in numbers, and the parameters
    that this takes, in one block where `block`."""

    what: str
    letters: str
    numbers: str
    parameters: int
    block: bool = False


def rows(config: GPTConfig) -> Iterator[Row]:
    """The tensors of one text of N tokens, from ids to logits; the rows of a block stand once."""
    width, vocabulary = config.n_embd, config.vocab_size
    sizes = {
        "C": width,
        "3C": 3 * width,
        "4C": 4 * width,
        "H": config.n_head,
        "D": config.head_dim,
        "V": vocabulary,
    }

    def row(what: str, letters: str, parameters: int = 0, block: bool = False) -> Row:
        numbers = _BY.join(str(sizes.get(letter, letter)) for letter in letters.split())
        return Row(what, letters.replace(" ", _BY), numbers, parameters, block)

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    yield row("token ids", "N")
    yield row("token embedding (wte)", "N C", vocabulary * width)
    yield row("+ position embedding (wpe)", "N C", config.context_length * width)
    yield row("layer norm (ln_1)", "N C", 2 * width, True)
    yield row("queries, keys, values (c_attn)", "N 3C", linear(width, 3 * width), True)
    yield row("... of each head", "3 H N D", 0, True)
    yield row("attention weights", "H N N", 0, True)
    yield row("weighted values, joined", "N C", 0, True)
    yield row("+ projection (c_proj)", "N C", linear(width, width), True)
    yield row("layer norm (ln_2)", "N C", 2 * width, True)
    yield row("GELU of a linear (c_fc)", "N 4C", linear(width, 4 * width), True)
    yield row("+ projection (c_proj)", "N C", linear(4 * width, width), True)
    yield row("layer norm (ln_f)", "N C", 2 * width)
    yield row("logits (head: wte again)", "N V")


def parts(config: GPTConfig) -> dict[str, int]:
    """Parameters of each part, in all blocks; they sum up to the model's."""
    width = config.n_embd
    return {
        "token embedding and head": config.vocab_size * width,
        "position embedding": config.context_length * width,
        "attention": config.n_layer * (4 * width * width + 4 * width),
        "MLP": config.n_layer * (8 * width * width + 5 * width),
        "layer norms": (2 * config.n_layer + 1) * 2 * width,
    }


@dataclass(frozen=True)
class Description:
    """`weights` says how a checkpoint holds them, such as "bf16, 24.8 MB"; empty for a preset."""

    name: str
    config: GPTConfig
    weights: str = ""
    perplexity: dict[str, float] | None = None

    @property
    def facts(self) -> list[str]:
        config = self.config
        total = sum(parts(config).values())
        cache = 2 * config.n_layer * config.context_length * config.n_embd * 4
        facts = [
            f"{config.n_layer} blocks, {config.n_head} heads, C = {config.n_embd}, "
            f"context {config.context_length}, V = {config.vocab_size}: {total:,} parameters.",
            f"KV cache of one text that fills the context: {cache / 1e6:.1f} MB in fp32.",
        ]
        if self.weights:
            facts.append(f"Weights: {self.weights}.")
        if self.perplexity:
            each = ", ".join(f"{value:.4g} in {name}" for name, value in self.perplexity.items())
            facts.append(f"Recorded perplexity: {each}.")
        return facts


def describe(source: str) -> Description:
    """A preset, or a checkpoint folder, whose weights must fit its config.

    Raises CheckpointError that says what is wrong in a line.
    """
    folder = Path(source)
    if source in PRESETS and not folder.is_dir():
        return Description(source, PRESETS[source])
    if not folder.is_dir():
        known = ", ".join(PRESETS)
        raise CheckpointError(f"{source} is neither a checkpoint folder nor a preset: {known}")
    config = read_config(folder)
    return Description(
        str(source), config, _weights(folder, config), read_perplexity(folder) or None
    )


def _weights(folder: Path, config: GPTConfig) -> str:
    """How the weights are held. Raises CheckpointError where they do not fit the config."""
    path = folder / WEIGHTS
    found: dict[str, list[int]] = {}
    dtypes = set()
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                tensor = file.get_slice(name)
                found[name] = tensor.get_shape()
                dtypes.add(str(tensor.get_dtype()).lower())
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {folder}: {WEIGHTS} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    shapes = empty_model(config).state_dict()
    wanted = {name: list(tensor.shape) for name, tensor in shapes.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            differ = f"{found.get(name, 'nothing')}, its {CONFIG} {wanted.get(name, 'nothing')}"
            raise CheckpointError(f"{path} has for {name} {differ}")
    return f"{', '.join(sorted(dtypes))}, {path.stat().st_size / 1e6:.1f} MB"


def tables(config: GPTConfig) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of two tables: the way through the model, and the parameters per part."""
    way = [
        [
            f"{'| ' if row.block else ''}{row.what}",
            row.letters,
            row.numbers,
            _count(row.parameters, config.n_layer if row.block else 1),
        ]
        for row in rows(config)
    ]
    first = next(i for i, row in enumerate(rows(config)) if row.block)
    way.insert(first, [f"{config.n_layer} times:", "", "", ""])
    sizes = parts(config)
    total = sum(sizes.values())
    shares = [
        [name, f"{count:,}", f"{count / total:.1%}"]
        for name, count in {**sizes, "all": total}.items()
    ]
    return [
        (["tensor", "shape", "numbers", "parameters"], way),
        (["part", "parameters", "share"], shares),
    ]


def _count(parameters: int, times: int) -> str:
    if not parameters:
        return ""
    return f"{times} {_BY} {parameters:,}" if times > 1 else f"{parameters:,}"


app = command_line()


@app.command(no_args_is_help=True)
def main(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|PRESET",
            help=f"Checkpoint folder, or one of {', '.join(PRESETS)}.",
        ),
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown tables.")] = False,
) -> None:
    """Tensor shapes through a model, from N token ids to N x V logits, and parameters per part.

    N is the number of tokens of a text, C the width, H the heads, D = C / H, V the vocabulary.

    Examples:

    \b
      python -m slm_core.describe runs/mine
      python -m slm_core.describe gpt2 --markdown
    """
    try:
        description = describe(source)
    except (CheckpointError, OSError) as error:
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(1) from None
    if markdown:
        typer.echo(_markdown(description))
        return
    console = Console()
    console.print(f"[bold]{escape(description.name)}[/]")
    for fact in description.facts:
        console.print(fact, highlight=False)
    for header, lines in tables(description.config):
        table = Table(*header[:1])
        for name in header[1:]:
            table.add_column(name, justify="right")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)


def _markdown(description: Description) -> str:
    blocks = [f"# {description.name}", *description.facts]
    for header, lines in tables(description.config):
        aligned = ["---", *["---:"] * (len(header) - 1)]
        cells = [header, aligned, *[[cell.replace("| ", "&nbsp; ") for cell in x] for x in lines]]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    app()
