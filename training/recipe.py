"""Every setting of a training run: its name, its meaning, its default.

Knows nothing of where values come from (see `settings.py`) or how they are carried out.
"""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from slm_core import GPTConfig
from slm_core.config import PRESETS

LENGTHS = ("epochs", "steps", "minutes")


@dataclass(frozen=True)
class Setting:
    """What a field means; a number lies in [`least`, `below`)."""

    group: str
    help: str
    least: float = 0
    below: float = float("inf")


def _setting(group: str, default: Any, help_: str, **limits: float) -> Any:
    return field(default=default, metadata={"setting": Setting(group, help_, **limits)})


_model = partial(_setting, "Model")
_length = partial(_setting, "Length")
_optimizer = partial(_setting, "Optimizer")
_machine = partial(_setting, "Machine")
_reports = partial(_setting, "Reports")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one run. The defaults are what measured best at the shape that ships.

    Raises ValueError that names the setting.
    """

    preset: str = _model(
        "tinystories",
        f"Shape of a new model, and the recipe for it: {', '.join(PRESETS)}.",
    )
    layers: int | None = _model(None, "Transformer blocks, instead of the preset's.", least=1)
    heads: int | None = _model(None, "Attention heads per block; divides the width.", least=1)
    width: int | None = _model(None, "Width of the residual stream.", least=1)
    context: int | None = _model(None, "Context length in tokens.", least=1)
    dropout: float = _model(
        0.05,
        "Dropout of embeddings and of every residual branch.",
        below=1,
    )
    vocabulary: Literal["compact", "full"] = _model(
        "compact",
        "Train over the token types that occur, or over all 50257; the checkpoint has all rows "
        "either way.",
    )
    init_from: str | None = _model(
        None,
        "Fine-tune: start from this checkpoint's shape and weights, at lower rates.",
    )
    freeze: tuple[str, ...] = _model(
        (),
        "Leave parameters as they are: a number of first blocks, or a name or pattern such as "
        "wte, h.0 or '*.ln_*'; again for more.",
    )
    seed: int = _model(1, "Decides first weights, the order of the data and dropout.", below=2**63)

    epochs: float | None = _length(4.0, "Passes over the data, each over all of its windows.")
    steps: int | None = _length(None, "Optimizer steps.", least=1)
    minutes: float | None = _length(
        None,
        "Stop, fully decayed, after this time. Compiling and evaluations take their part of it, "
        "pauses do not. Of several lengths the first to be reached ends the run.",
    )
    batch: int = _length(4, "Sequences per step, over all ranks and micro-batches.", least=1)
    accumulate: int = _length(
        1,
        "Micro-batches that each rank cuts its share of a step into: less memory, same step.",
        least=1,
    )

    optimizer: Literal["muon", "adamw"] = _optimizer(
        "muon",
        "Muon for the blocks' matrices and AdamW for the rest, or AdamW for all.",
    )
    muon_lr: float = _optimizer(0.01, "Muon's peak rate.")
    muon_momentum: float = _optimizer(0.95, "Muon's momentum.", below=1)
    adam_lr: float = _optimizer(6e-3, "AdamW's peak rate.")
    adam_beta1: float = _optimizer(0.9, "AdamW's first beta.", below=1)
    adam_beta2: float = _optimizer(0.99, "AdamW's second beta.", below=1)
    position_lr: float = _optimizer(0.05, "Rate of the position embeddings, as a part of AdamW's.")
    weight_decay: float = _optimizer(
        0.05,
        "Decay of the blocks' matrices, times the rate; nothing else decays.",
    )
    schedule: Literal["linear", "cosine", "wsd"] = _optimizer(
        "linear",
        "Decay of the rates: over the whole run, or at its end only (warm-up, stable, decay).",
    )
    warmup: float = _optimizer(0.02, "Part of the run in which the rates rise.", below=1)
    decay: float = _optimizer(0.2, "Part of the run in which wsd decays.", below=1)
    final_lr: float = _optimizer(0.0, "Where the rates end, as a part of their peaks.")
    clip: float = _optimizer(1.0, "Longest gradient; longer ones are scaled to it. 0 for no limit.")
    ema: float = _optimizer(
        0.0,
        "Decay of the average of the weights that is evaluated and saved, such as 0.999. 0 for "
        "none.",
        below=1,
    )

    device: Literal["auto", "cpu", "cuda"] = _machine("auto", "auto takes CUDA where there is one.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _machine(
        "auto",
        "Precision of products; weights stay fp32. auto takes bf16 where the hardware has it, else "
        "fp16 on CUDA and fp32 on a CPU.",
    )
    compile: bool = _machine(
        True,
        "Train through torch.compile, which takes half a minute first and is then 3 to 5 times as "
        "fast on a CPU.",
    )
    threads: int | None = _machine(None, "CPU threads to use, instead of one a core.", least=1)

    eval_every: int = _reports(250, "Steps between evaluations.", least=1)
    eval_documents: int = _reports(
        200,
        "Validation documents that each evaluation reads, spread over all; 0 for all. The end of "
        "the run measures all.",
    )
    save_every: int = _reports(
        250,
        "Steps between saved states; every evaluation saves one too.",
        least=1,
    )
    also_evaluate: tuple[str, ...] = _reports(
        (),
        "Another val.bin whose loss goes into the log, such as that of what a fine-tuned model "
        "knew; again for more.",
    )
    prompts: tuple[str, ...] = _reports(
        (),
        "Begin a sample of every evaluation with this, instead of how a validation document "
        "begins; again for more.",
    )
    tensorboard: bool = _reports(False, "Write events for TensorBoard, too.")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, checked(name, value))
        if self.preset not in PRESETS:
            raise ValueError(f"no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        lengths = [value for name in LENGTHS if (value := getattr(self, name)) is not None]
        if not lengths or min(lengths) <= 0:
            raise ValueError("set epochs, steps or minutes, above 0")
        if self.warmup + self.decay > 1 and self.schedule == "wsd":
            raise ValueError("warmup and decay are more than the whole run together")

    def config(self, start: GPTConfig | None = None) -> GPTConfig:
        """The model's shape: the preset's, or that of `start`, the checkpoint to fine-tune, with
        what the settings say of it. Raises ValueError where that fits no model, or not `start`."""
        shape = {"n_layer": self.layers, "n_head": self.heads, "n_embd": self.width}
        given = {name: value for name, value in shape.items() if value is not None}
        if start is not None and given:
            raise ValueError("layers, heads and width are those of the checkpoint to start from")
        if start is not None and (self.context or 0) > start.context_length:
            most = start.context_length
            raise ValueError(f"context is {self.context}; the checkpoint to start from has {most}")
        base = start or GPTConfig.preset(self.preset)
        length = self.context or base.context_length
        return replace(base, **given, context_length=length, dropout=self.dropout)

    @property
    def main_lr(self) -> float:
        """The peak rate that is reported: that of the blocks' matrices."""
        return self.muon_lr if self.optimizer == "muon" else self.adam_lr


@cache
def settings() -> dict[str, tuple[Any, Setting, Any]]:
    """Every setting's type, meaning and default, by its name."""
    hints = get_type_hints(Recipe)
    return {f.name: (hints[f.name], f.metadata["setting"], f.default) for f in fields(Recipe)}


def checked(name: str, value: Any) -> Any:
    """`value` as the setting `name` holds it. Raises ValueError."""
    kind, setting, _ = settings()[name]
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} must be {' or '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        listed = isinstance(value, list | tuple)
        if not listed or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{name} must be a list of strings, not {value!r}")
        return tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {_KINDS[kind]}, not {value!r}")
    if kind in (int, float) and not setting.least <= value < setting.below:
        limit = f" and below {setting.below:g}" if setting.below != float("inf") else ""
        raise ValueError(f"{name} must be at least {setting.least:g}{limit}, not {value}")
    return value


_KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
