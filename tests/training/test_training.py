"""The whole of training on a few sentences, and the tricks that it relies on."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer import Typer
from typer.testing import CliRunner

from slm_core import (
    GPT,
    Engine,
    GPTConfig,
    SamplingParams,
    Tokenizer,
    load_checkpoint,
    save_checkpoint,
)
from slm_core.checkpoint import read_perplexity
from training import prepare, train
from training.evaluate import evaluate
from training.evaluate import main as evaluate_command
from training.optim import Muon, build_optimizers, orthogonalize, set_learning_rate
from training.vocabulary import CompactVocabulary

STORIES = [f"Once there was a {a} {b}. It was {a}." for a in ("red", "big") for b in ("cat", "dog")]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in STORIES * 40))
    return path


@pytest.fixture
def data(text: Path, tmp_path: Path) -> Path:
    out = tmp_path / "data"
    prepare.main(train=text, valid=text, out=out)
    return out


def test_documents_end_with_end_of_text(text: Path, data: Path) -> None:
    tokenizer = Tokenizer()
    tokens = np.fromfile(data / "train.bin", prepare.TOKEN_DTYPE)
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.eos_id) + 1)
    assert documents.pop().size == 0
    assert [tokenizer.decode(d[:-1].tolist()) for d in documents] == STORIES * 40
    meta = json.loads((data / "meta.json").read_text())
    assert meta["train"] == {"source": "stories.txt", "documents": 160, "tokens": len(tokens)}


def test_gzip_is_read_and_bad_bytes_are_named(text: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "stories.txt.gz"
    zipped.write_bytes(gzip.compress(text.read_bytes()))
    assert list(prepare.read_documents(zipped)) == list(prepare.read_documents(text))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bad\.txt is not UTF-8"):
        list(prepare.read_documents(bad))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_few_steps_learn_and_the_checkpoint_serves(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    app = Typer()
    app.command()(train.main)
    arguments = (
        f"--data {data} --out {out} --preset tiny --context 32 --batch 4 --epochs 6 "
        "--eval-every 20 --no-compile"
    )
    result = CliRunner().invoke(app, arguments.split(), catch_exceptions=False)
    assert result.exit_code == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["val_loss"] < 1.5 < log[0]["val_loss"]
    model = load_checkpoint(out)
    assert model.config.vocab_size == 50257
    [completion] = Engine(model, slots=1).generate(
        "Once there was a", SamplingParams(max_tokens=12, temperature=0)
    )
    assert completion.text.startswith((" red", " big"))


def compact(seed: int = 0) -> tuple[CompactVocabulary, GPT, GPTConfig]:
    rng = random.Random(seed)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=16, vocab_size=500)
    tokens = np.array([rng.choice(range(0, 500, 7)) for _ in range(2000)], np.uint16)
    vocabulary = CompactVocabulary(tokens, config.vocab_size)
    torch.manual_seed(seed)
    return vocabulary, GPT(vocabulary.config(config)).eval(), config


def test_compact_loss_equals_that_of_the_expanded_model() -> None:
    vocabulary, model, config = compact()
    full = vocabulary.expand(model, config)
    tokens = np.random.default_rng(0).integers(0, 500, (3, 17)).astype(np.uint16)  # unseen ones too
    ids = torch.from_numpy(vocabulary.encode(tokens))
    expected = F.cross_entropy(
        full(torch.from_numpy(tokens[:, :-1].astype(np.int64))).flatten(0, 1),
        torch.from_numpy(tokens[:, 1:].astype(np.int64)).flatten(),
    )
    loss = vocabulary.loss(model, ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_shrinking_undoes_expanding() -> None:
    vocabulary, model, config = compact()
    again = GPT(model.config).eval()
    vocabulary.shrink(vocabulary.expand(model, config), again)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_every_window_begins_with_a_document() -> None:
    lengths = [5, 3, 20, 4, 4, 2, 9]
    begins = np.cumsum([0, *lengths])
    starts = train.window_starts(begins, 10)
    assert starts.tolist() == [0, 8, 28]
    assert train.window_starts(begins, 8).tolist() == [0, 8, 28, 36, 38]


def test_whole_stories_are_scored_alone() -> None:
    eos = 50256
    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=6)
    model = GPT(config).eval()
    documents = [[1, 2, 3, eos], [7, eos], [4] * 9 + [eos]]
    expected = []
    for document in documents:
        ids = torch.tensor([document[:7]])
        loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
        expected += loss.tolist()
    tokens = np.array([t for d in documents for t in d], np.uint16)
    loss = evaluate(model.logits, tokens, context_length=6)
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_rare_types_sometimes_train_the_shared_row() -> None:
    tokens = np.array([1] * 100 + [2], np.uint16)
    vocabulary = CompactVocabulary(tokens, 10)
    encoded = vocabulary.encode(np.array([1, 2] * 1000, np.uint16), np.random.default_rng(0))
    assert (encoded[::2] == 0).all()
    assert 200 < (encoded[1::2] == vocabulary.shared).sum() < 400


def test_orthogonalize_flattens_singular_values() -> None:
    matrix = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix).float())
    assert 0.6 < values.min() <= values.max() < 1.3


def test_every_parameter_has_one_optimizer() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=16, vocab_size=64))
    optimizers = build_optimizers(model, muon_lr=0.01, adam_lr=0.006, weight_decay=0.05)
    owned = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    muon = next(o for o in optimizers if isinstance(o, Muon))
    assert sum(len(g["params"]) for g in muon.param_groups) == 4
    set_learning_rate(optimizers, 0.5)
    rates = sorted(g["lr"] for o in optimizers for g in o.param_groups)
    assert rates == pytest.approx([0.00015, 0.003, 0.005])


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    rates = [train.learning_rate_fraction(i / 1000) for i in range(1001)]
    assert rates[0] == rates[-1] == 0.0
    assert max(rates) == 1.0
    assert rates.index(1.0) == 20


def test_every_precision_is_evaluated_and_recorded(tmp_path: Path) -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=8)
    save_checkpoint(GPT(config), tmp_path / "model")
    np.array([1, 2, 3, 50256, 4, 5, 50256], np.uint16).tofile(tmp_path / "val.bin")
    app = Typer()
    app.command()(evaluate_command)
    arguments = [str(tmp_path / "model"), str(tmp_path / "val.bin"), "--record"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout.splitlines()[-1])["perplexity"]
    assert measured["fp32"] == pytest.approx(measured["bf16"], rel=0.05)
    assert read_perplexity(tmp_path / "model") == measured
    failed = CliRunner().invoke(app, [*arguments, "--precision", "fp8"])
    assert failed.exit_code == 2
    assert "no precision 'fp8'" in failed.output
