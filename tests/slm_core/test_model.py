"""The model as it is trained equals the model that is served."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from slm_core import GPT, GPTConfig


@pytest.mark.parametrize("time", [1, 64, 65, 200])
def test_attention_by_blocks_is_attention(time: int) -> None:
    """Training on a CPU takes blocks of 64 queries, evaluation PyTorch's kernel."""
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=200, vocab_size=50)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so that attention is not uniform
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(50, (3, time + 1))

    found = []
    for training in (True, False):
        model.train(training).zero_grad()
        logits = model(ids[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([logits.detach(), *gradients])

    for by_blocks, by_kernel in zip(*found, strict=True):
        torch.testing.assert_close(by_blocks, by_kernel, rtol=1e-4, atol=1e-5)


def test_no_token_sees_a_later_one_while_it_is_trained() -> None:
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=200, vocab_size=50)
    model = GPT(config).train()
    ids = torch.randint(50, (1, 200))
    other = ids.clone()
    other[:, 130:] = (other[:, 130:] + 1) % 50

    assert torch.equal(model(ids)[:, :130], model(other)[:, :130])
