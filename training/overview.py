"""What a run will do, told before it begins."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from slm_core import GPT, GPTConfig
from training.machine import Machine
from training.ranks import Ranks
from training.recipe import Recipe
from training.run import Run
from training.start import Start
from training.trainer import Trainer


def overview(run: Run, start: Start, machine: Machine, ranks: Ranks, trainer: Trainer) -> Table:
    recipe, data = run.recipe, run.data
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "model": _model(start.config, start.model),
        "trained": _trained(recipe, start),
        "data": f"{len(data.train):,} tokens; {len(data.val):,} to validate on",
        "length": _length(recipe, start.config.context_length, trainer),
        "optimizer": _optimizer(recipe),
        "machine": _machine(recipe, machine, ranks),
        "folder": str(run.out),
    }
    if run.state:
        rows["goes on"] = f"from step {run.state.step:,}, at {trainer.rate:.0%} of the peak rates"
    for name, text in rows.items():
        table.add_row(Text(name, "bold"), Text(text))
    return table


def _model(config: GPTConfig, model: GPT) -> str:
    sizes = dict.fromkeys(("wte", "wpe", "h", "ln_f"), 0)
    for name, parameter in model.named_parameters():
        sizes[name.split(".")[0]] += parameter.numel()
    sizes["wte"] = config.vocab_size * config.n_embd
    return (
        f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, context "
        f"{config.context_length}: {sum(sizes.values()):,} parameters\n"
        f"token embeddings and head {sizes['wte']:,}, positions {sizes['wpe']:,}, "
        f"blocks {sizes['h']:,}, last norm {sizes['ln_f']:,}"
    )


def _trained(recipe: Recipe, start: Start) -> str:
    vocabulary = start.vocabulary
    parameters = list(start.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    types = f"{len(vocabulary.used):,} of {vocabulary.vocab_size:,} token types"
    shared = f", one row for the other {vocabulary.unused:,}" if vocabulary.unused else ""
    frozen = f"; {sum(p.numel() for p in parameters) - trained:,} frozen" if recipe.freeze else ""
    source = f"from {recipe.init_from}: " if recipe.init_from else ""
    return f"{source}{trained:,} parameters{frozen}; {types}{shared}"


def _length(recipe: Recipe, time: int, trainer: Trainer) -> str:
    step_tokens = recipe.batch * time
    parts = []
    if steps := trainer.total_steps:
        epochs = steps / trainer.steps_per_epoch
        parts.append(f"{steps:,} steps, {steps * step_tokens:,} tokens, {epochs:.3g} epochs")
    if recipe.minutes:
        parts.append(f"{recipe.minutes:g} minutes")
    return f"{' or '.join(parts)}; {step_tokens:,} tokens a step ({recipe.batch} x {time})"


def _optimizer(recipe: Recipe) -> str:
    rates = f"AdamW {recipe.adam_lr:g}"
    if recipe.optimizer == "muon":
        rates = f"Muon {recipe.muon_lr:g} for the blocks' matrices, {rates} for the rest"
    average = f", weights averaged ({recipe.ema:g})" if recipe.ema else ""
    return f"{rates}; {recipe.schedule}, {recipe.warmup:.0%} warm-up{average}"


def _machine(recipe: Recipe, machine: Machine, ranks: Ranks) -> str:
    compiled = ", compiled" if recipe.compile else ""
    many = f", {ranks.world} ranks" if ranks.world > 1 else ""
    return f"{machine}{compiled}{many}"
