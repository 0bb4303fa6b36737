"""Hugging Face's GPT-2 directories, from and to: `python -m slm_core.huggingface --help`.

Reads and writes their files; knows nothing of transformers. Weights are only ever read from
safetensors, as everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from slm_core.checkpoint import (
    CARD,
    CONFIG,
    WEIGHTS,
    read_config,
    read_weights,
    save_checkpoint,
    would_overwrite,
    write_text,
    write_weights,
)
from slm_core.config import GPT2_VOCAB_SIZE, GPTConfig
from slm_core.errors import CheckpointError
from slm_core.model import empty_model
from slm_core.vocabulary import merges, vocabulary

INDEX = "model.safetensors.index.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

# What our GPT is, in the words of GPT2Config: an import takes these values only, an export writes
# the first of each. A field that is absent has it too, as in GPT2Config. What is not here changes
# no number (reorder_and_upcast_attn, which matters below fp32) or only other heads (summary_*).
_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "bos_token_id": (50256, None),
    "eos_token_id": (50256, None, [50256]),
    "tokenizer_class": (None, "GPT2Tokenizer", "GPT2TokenizerFast"),
    "quantization_config": (None,),
}
_SHAPE = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_positions": "context_length",
    "vocab_size": "vocab_size",
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CONV1D = ("c_attn.weight", "c_fc.weight", "c_proj.weight")  # [in, out] there, [out, in] here
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, in files of older versions
_PREFIX, _HEAD = "transformer.", "lm_head.weight"


def import_huggingface(source_dir: str | Path, target_dir: str | Path) -> Path:
    """Turns a `GPT2LMHeadModel` directory into a checkpoint directory; returns the target.

    Weights keep their dtype where all share fp32, fp16 or bf16, and become fp32 where they differ;
    no value changes. Of the three dropouts, which matter in training only, `resid_pdrop` is kept.

    Raises CheckpointError, before anything is written, where files are missing or damaged, where
    the config asks for what our GPT does not do, where tensors do not fit the config, where the
    vocabulary is not GPT-2's, and where the target holds a checkpoint already.
    """
    source, target = _distinct(source_dir, target_dir)
    content = _read_json(source / CONFIG)
    config = _our_config(source / CONFIG, content)
    _check_vocabulary(source)
    weights = _read_weights(source)
    head = weights.pop(_HEAD, None)
    model = empty_model(config)
    _check_weights(source, weights, _transposed(model.state_dict()))
    if head is None and not content.get("tie_word_embeddings", True):
        raise CheckpointError(f"{source}: tie_word_embeddings is false, but {_HEAD} is missing")
    if head is not None and not torch.equal(head.float(), weights["wte.weight"].float()):
        raise CheckpointError(f"{source}: {_HEAD} is not wte.weight; our head is tied to it")
    model.load_state_dict(_transposed(weights), assign=True)
    dtype = _shared_dtype(weights.values())
    if would_overwrite(target):
        raise CheckpointError(f"{target} holds a checkpoint already; name another folder")
    return save_checkpoint(model, target, dtype=dtype, card=_card(source, config, dtype))


def export_huggingface(source_dir: str | Path, target_dir: str | Path) -> Path:
    """Turns a checkpoint directory into one for transformers; returns the target.

    `GPT2LMHeadModel.from_pretrained` and `AutoTokenizer.from_pretrained` load it offline. Weights
    keep their dtype; the model card goes along.

    Raises CheckpointError, before anything is written, where the checkpoint is missing or damaged,
    and where the target holds files that an export does not write: transformers might read them.
    """
    source, target = _distinct(source_dir, target_dir)
    config = read_config(source)
    weights = read_weights(source / WEIGHTS)
    _check_weights(source, weights, empty_model(config).state_dict())
    ids = vocabulary()
    texts = {
        VOCAB: json.dumps(ids),
        MERGES: "\n".join(["#version: 0.2", *merges(ids), ""]),
        TOKENIZER_CONFIG: _dumps(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "model_max_length": config.context_length,
                "clean_up_tokenization_spaces": False,
            }
        ),
        CONFIG: _dumps(_their_config(config, _shared_dtype(weights.values()))),
    }
    if (source / CARD).is_file():
        texts[CARD] = (source / CARD).read_text("utf-8", errors="replace")
    if target.is_dir():
        files = {path.name for path in target.iterdir() if path.is_file()}
        if others := {f for f in files - {WEIGHTS, CARD, *texts} if not f.startswith(".")}:
            raise CheckpointError(f"{target} holds other files: {_few(others)}; name a new folder")
    target.mkdir(parents=True, exist_ok=True)
    theirs = {_PREFIX + k: v.contiguous() for k, v in _transposed(weights).items()}
    write_weights(target / WEIGHTS, theirs)
    for name, text in texts.items():
        write_text(target / name, text)
    return target


def _distinct(source_dir: str | Path, target_dir: str | Path) -> tuple[Path, Path]:
    source, target = Path(source_dir), Path(target_dir)
    if source.resolve() == target.resolve():
        raise CheckpointError(f"{target} is the source itself; name another target")
    return source, target


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path.parent}: {path.name} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _dumps(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _our_config(path: Path, content: dict[str, Any]) -> GPTConfig:
    """Our config of theirs. Raises CheckpointError naming the field that does not fit our GPT."""
    for name, allowed in _FIXED.items():
        if (value := content.get(name, allowed[0])) not in allowed:
            known = " or ".join(map(json.dumps, allowed))
            raise CheckpointError(f"{path}: {name} is {json.dumps(value)}; it must be {known}")
    for name in _SHAPE:
        if type(value := content.get(name)) is not int or value < 1:
            raise CheckpointError(f"{path}: {name} is {value!r}; it must be a positive integer")
    if content.get("n_inner") not in (None, 4 * content["n_embd"]):
        raise CheckpointError(f"{path}: n_inner is {content['n_inner']}; it must be 4 * n_embd")
    if content["vocab_size"] > GPT2_VOCAB_SIZE:
        size = content["vocab_size"]
        raise CheckpointError(f"{path}: vocab_size is {size}; GPT-2's is {GPT2_VOCAB_SIZE}")
    shape = {ours: content[name] for name, ours in _SHAPE.items()}
    return GPTConfig.from_dict({**shape, "dropout": content.get("resid_pdrop", 0.1)})


def _their_config(config: GPTConfig, dtype: torch.dtype) -> dict[str, object]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(config, ours) for name, ours in _SHAPE.items()},
        **{name: values[0] for name, values in _FIXED.items() if values[0] is not None},
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), config.dropout),
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "dtype": _name(dtype),
    }


def _check_vocabulary(source: Path) -> None:
    """Refuses other vocabularies: their models would load here, and write nonsense."""
    ids = vocabulary()
    for path in filter(Path.exists, (source / VOCAB, source / TOKENIZER)):
        content = _read_json(path)
        try:
            theirs = content if path.name == VOCAB else content["model"]["vocab"]
            same = all(ids.get(token) == id_ for token, id_ in theirs.items())
        except (AttributeError, KeyError, TypeError):
            same = False
        if not same:
            raise CheckpointError(f"{path} is not GPT-2's vocabulary; no other is supported")


def _read_weights(source: Path) -> dict[str, Tensor]:
    """All tensors but mask buffers, by our names."""
    weights: dict[str, Tensor] = {}
    for file in _weight_files(source):
        for name, tensor in read_weights(source / file).items():
            if name.endswith(_BUFFERS):
                continue
            if (ours := name.removeprefix(_PREFIX)) in weights:
                raise CheckpointError(f"{source} holds {ours} twice")
            weights[ours] = tensor
    return weights


def _weight_files(source: Path) -> list[str]:
    if (source / WEIGHTS).exists():
        return [WEIGHTS]
    if (source / INDEX).exists():
        shards = _read_json(source / INDEX).get("weight_map")
        files = set(map(str, shards.values())) if isinstance(shards, dict) else {""}
        if any(Path(file).name != file or Path(file).suffix != ".safetensors" for file in files):
            raise CheckpointError(f"{source / INDEX} does not map to safetensors files beside it")
        return sorted(files)
    if pickled := _few(path.name for path in source.glob("*.bin")):
        raise CheckpointError(
            f"{source} holds pickled weights ({pickled}), which can run code and are never read; "
            "if you trust them, convert them with transformers: "
            "GPT2LMHeadModel.from_pretrained(source).save_pretrained(target) writes safetensors"
        )
    raise CheckpointError(f"no checkpoint at {source}: {WEIGHTS} is missing")


def _check_weights(source: Path, weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    if missing := wanted.keys() - weights.keys():
        raise CheckpointError(f"{source} lacks tensors that its {CONFIG} asks for: {_few(missing)}")
    if extra := weights.keys() - wanted.keys():
        raise CheckpointError(f"{source} holds tensors that our GPT has not: {_few(extra)}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            raise CheckpointError(f"{source} does not fit its {CONFIG}: {name} is {shapes}")
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{source}: {name} is {_name(tensor.dtype)}, not a known float")


def _transposed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs of our layout, and ours of theirs."""
    return {name: w.t() if name.endswith(_CONV1D) else w for name, w in weights.items()}


def _shared_dtype(weights: Iterable[Tensor]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in weights}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _few(names: Iterable[str], limit: int = 4) -> str:
    ordered = sorted(names)
    rest = [f"and {len(ordered) - limit} more"] if len(ordered) > limit else []
    return ", ".join([*ordered[:limit], *rest])


def _card(source: Path, config: GPTConfig, dtype: torch.dtype) -> str:
    """The source's own card, whose licence holds here too, and where it all comes from."""
    name, path = source.resolve().name, source / CARD
    own = path.read_text("utf-8", errors="replace") if path.is_file() else f"# {name}\n"
    return (
        f"{own.rstrip()}\n\n## Import\n\n"
        f"The weights of the Hugging Face directory `{name}`, as {_name(dtype)}: GPT-2 with "
        f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, context "
        f"{config.context_length}. Licence and limits are its own.\n"
    )


app = typer.Typer(
    help="Hugging Face GPT-2 folders to checkpoints, and back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
_Source = Annotated[Path, typer.Argument(help="Folder to read.", show_default=False)]
_Target = Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)]


@app.command("import")
def _import(source: _Source, target: _Target) -> None:
    """Turn a GPT-2 folder into a checkpoint.

    Weights must be safetensors. `slm up --model TARGET` serves the checkpoint.
    """
    _run(import_huggingface, source, target)


@app.command("export")
def _export(source: _Source, target: _Target) -> None:
    """Turn a checkpoint into a GPT-2 folder.

    transformers loads it offline, tokenizer included.
    """
    _run(export_huggingface, source, target)


def _run(convert: Callable[[Path, Path], Path], source: Path, target: Path) -> None:
    try:
        typer.echo(convert(source, target))
    except (CheckpointError, OSError) as error:
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
