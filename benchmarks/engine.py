"""The engine alone, and against transformers' `generate` on the same weights.

python -m benchmarks.engine
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from benchmarks.measure import interleave, median_ratio, random_model, random_prompts, report
from slm_core import GPT, Engine, SamplingParams

TEMPERATURE, TOP_K = 0.8, 40


def to_transformers(model: GPT) -> GPT2LMHeadModel:
    """The same weights as transformers' GPT-2; its Conv1D keeps matrices transposed."""
    config = model.config
    peer = GPT2LMHeadModel(
        GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.context_length,
            vocab_size=config.vocab_size,
        )
    ).eval()
    weights = {
        f"transformer.{name}": tensor.T if "c_" in name and tensor.ndim == 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    weights["lm_head.weight"] = model.wte.weight
    peer.load_state_dict(weights)
    return peer


def transformers_generate(peer: GPT2LMHeadModel, prompts: list[list[int]], tokens: int) -> int:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    settings = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        max_new_tokens=tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    with torch.inference_mode():
        out = peer.generate(ids, attention_mask=mask, generation_config=settings)
    return int(out[:, longest:].numel())


def main(
    preset: Annotated[str, typer.Option(help="Model shape; weights are random.")] = "slm-30m",
    batch: Annotated[int, typer.Option(help="Prompts of 4 to 64 tokens.")] = 64,
    tokens: Annotated[int, typer.Option(help="New tokens for each.")] = 200,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 5,
) -> None:
    """Batch against one at a time, and against transformers, interleaved."""
    model = random_model(preset)
    peer = to_transformers(model)
    prompts = random_prompts(batch)
    ids = torch.tensor([prompts[0]])
    with torch.inference_mode():
        torch.testing.assert_close(peer(ids).logits, model(ids), rtol=1e-3, atol=1e-3)
    engine = Engine(model, device="cpu", slots=batch)
    params = SamplingParams(
        max_tokens=tokens, temperature=TEMPERATURE, top_k=TOP_K, ignore_eos=True
    )

    def ours(prompts: list[list[int]]) -> int:
        return sum(c.usage.completion_tokens for c in engine.generate(prompts, params))

    batched, single, theirs = f"engine x{batch}", "engine x1", f"transformers x{batch}"
    rates = interleave(
        {
            batched: lambda: ours(prompts),
            single: lambda: ours(prompts[:1]),
            theirs: lambda: transformers_generate(peer, prompts, tokens),
        },
        repeats,
    )
    report(
        "engine",
        rates,
        preset=preset,
        fingerprint=engine.fingerprint,
        threads=torch.get_num_threads(),
        batch_over_single=round(median_ratio(rates, batched, single), 2),
        engine_over_transformers=round(median_ratio(rates, batched, theirs), 2),
    )


if __name__ == "__main__":
    typer.run(main)
