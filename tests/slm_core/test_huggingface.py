"""Both directions against transformers itself, which slm_core never imports."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model
from typer.testing import CliRunner

from slm_core import (
    GPT,
    Engine,
    GPTConfig,
    SamplingParams,
    Tokenizer,
    export_huggingface,
    import_huggingface,
    load_checkpoint,
    save_checkpoint,
)
from slm_core.errors import CheckpointError
from slm_core.huggingface import app
from tests.slm_core.conftest import random_model

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 100}
OURS = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=32, vocab_size=100, dropout=0.1)
IDS = torch.randint(100, (3, 32), generator=torch.Generator().manual_seed(0))


def peer_model(seed: int = 0, **changes: object) -> GPT2LMHeadModel:
    """A small GPT-2 of transformers; every parameter random, so that a swapped pair shows."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def peer() -> GPT2LMHeadModel:
    return peer_model()


@pytest.fixture
def source(peer: GPT2LMHeadModel, tmp_path: Path) -> Path:
    peer.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    model = random_model(GPTConfig(n_layer=1, n_head=2, n_embd=8, context_length=64))
    return export_huggingface(save_checkpoint(model, folder / "ours"), folder / "theirs")


@torch.inference_mode()
def assert_same_logits(ours: GPT, theirs: GPT2LMHeadModel, ids: Tensor = IDS) -> None:
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def alter(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def as_openai_published(weights: dict[str, Tensor]) -> None:
    """No prefix, no head, and a causal mask in every block, as in `openai-community/gpt2`."""
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)
    for block in range(SHAPE["n_layer"]):
        weights[f"h.{block}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        weights[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)


def with_tied_head(weights: dict[str, Tensor]) -> None:
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda d: alter(d, as_openai_published),
        lambda d: alter(d, with_tied_head),
        lambda d: (alter(d, with_tied_head), edit(d, tie_word_embeddings=False)),
        lambda d: edit(d, activation_function="gelu_pytorch_tanh", n_inner=64),
        lambda d: edit(d, eos_token_id=[50256], bos_token_id=None, reorder_and_upcast_attn=True),
        lambda d: (d / "pytorch_model.bin").write_bytes(b"not read beside safetensors"),
    ],
)
def test_an_import_gives_the_same_logits(
    peer: GPT2LMHeadModel, source: Path, target: Path, change: Callable[[Path], object]
) -> None:
    change(source)
    assert import_huggingface(source, target) == target
    model = load_checkpoint(target)
    assert model.config == OURS
    assert_same_logits(model, peer)
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_an_import_reads_shards(peer: GPT2LMHeadModel, tmp_path: Path, target: Path) -> None:
    peer.save_pretrained(tmp_path / "source", max_shard_size="10KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    assert_same_logits(load_checkpoint(import_huggingface(tmp_path / "source", target)), peer)


def test_an_import_serves(peer: GPT2LMHeadModel, source: Path, target: Path) -> None:
    engine = Engine.from_checkpoint(import_huggingface(source, target), device="cpu", slots=1)
    prompt = IDS[:1, :8]
    [ours] = engine.generate([prompt[0].tolist()], SamplingParams(max_tokens=8, temperature=0))
    theirs = peer.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
    )
    assert ours.token_ids == theirs[0, 8:].tolist()


def test_an_export_gives_the_same_logits(tmp_path: Path, target: Path) -> None:
    ours = random_model(OURS)
    save_checkpoint(ours, tmp_path / "ours", card="# Licence: ours\n")
    assert export_huggingface(tmp_path / "ours", target) == target
    theirs, report = GPT2LMHeadModel.from_pretrained(target, output_loading_info=True)
    assert not any(report.values())
    assert_same_logits(ours, theirs.eval())
    assert (theirs.config.resid_pdrop, theirs.config.attn_pdrop) == (OURS.dropout, 0.0)
    assert (target / "README.md").read_text() == "# Licence: ours\n"
    export_huggingface(tmp_path / "ours", target)  # again, over itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_survive_a_round_trip_bit_by_bit(
    tmp_path: Path, target: Path, dtype: torch.dtype
) -> None:
    first = save_checkpoint(random_model(OURS), tmp_path / "first", dtype=dtype)
    again = import_huggingface(export_huggingface(first, tmp_path / "theirs"), target)
    before, after = (load_file(folder / "model.safetensors") for folder in (first, again))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name], tensor)
    assert load_checkpoint(again).config == OURS
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "theirs").dtype == dtype


def test_mixed_dtypes_become_fp32(source: Path, target: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    alter(source, lambda w: w.update({name: w[name].half()}))
    weights = load_file(import_huggingface(source, target) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    expected = load_file(source / "model.safetensors")[name].float().t()
    assert torch.equal(weights["h.0.attn.c_attn.weight"], expected)


@pytest.mark.parametrize("own", [None, "---\nlicense: mit\n---\n\n# Their card\n"])
def test_the_card_says_where_the_weights_come_from(
    source: Path, target: Path, own: str | None
) -> None:
    (source / "README.md").unlink(missing_ok=True)
    if own:
        (source / "README.md").write_text(own)
    card = (import_huggingface(source, target) / "README.md").read_text()
    assert card.startswith(own or "# source\n")
    assert "Hugging Face directory `source`, as float32: GPT-2 with 2 layers" in card


def test_gpt2_itself_imports(tmp_path: Path, target: Path) -> None:
    """124 M parameters of GPT-2's names and shapes, in bf16."""
    with torch.device("meta"):
        theirs = GPT2Model(GPT2Config())
    theirs.config.save_pretrained(tmp_path)
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.05).bfloat16()
    weights = {
        name: noise.repeat(-(-tensor.numel() // len(noise)))[: tensor.numel()].view(tensor.shape)
        for name, tensor in theirs.state_dict().items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    import_huggingface(tmp_path, target)
    model = load_checkpoint(target)
    assert model.config == GPTConfig(12, 12, 768, 1024, dropout=0.1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808
    last = model.h[11].mlp.c_fc.weight
    assert torch.equal(last, weights["h.11.mlp.c_fc.weight"].float().t())
    with torch.inference_mode():
        assert model(torch.tensor([[464, 3290, 318, 257]])).isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("n_inner", 32),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("bos_token_id", 1),
        ("eos_token_id", [50256, 198]),
        ("tokenizer_class", "BertTokenizer"),
        ("quantization_config", {"bits": 4}),
        ("vocab_size", 50258),
        ("vocab_size", 0),
        ("n_layer", "2"),
        ("n_positions", None),
        ("n_head", 3),
        ("tie_word_embeddings", False),
    ],
)
def test_a_config_that_is_not_ours_is_refused_by_field(
    source: Path, target: Path, field: str, value: object
) -> None:
    edit(source, **{field: value})
    with pytest.raises(CheckpointError, match=rf"\b{field}\b"):
        import_huggingface(source, target)
    assert not target.exists()


FC = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(FC), r"lacks tensors .*: h\.1\.mlp\.c_fc\.weight$"),
        (lambda w: w.clear() or w.update(x=torch.ones(1)), r"and 24 more"),
        (lambda w: w.update({"score.weight": torch.ones(1)}), r"our GPT has not: score\.weight"),
        (lambda w: w.update({FC: w[FC].t().contiguous()}), r"c_fc\.weight is \[64, 16\], not \[16"),
        (lambda w: w.update({FC: torch.ones(1, 16, 64)}), r"c_fc\.weight is \[1, 16, 64\]"),
        (lambda w: w.update({FC: w[FC].to(torch.int8)}), r"c_fc\.weight is int8"),
        (lambda w: w.update({"wpe.weight": torch.ones(32, 16)}), r"wpe\.weight twice"),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(100, 16)}),
            r"lm_head\.weight is not wte",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    source: Path, target: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    alter(source, change)
    with pytest.raises(CheckpointError, match=message):
        import_huggingface(source, target)
    assert not target.exists()


def only_an_index(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), r"cannot read .*config\.json"),
        (lambda d: (d / "config.json").write_text("[]"), r"not a JSON object"),
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 20), r"cannot read"),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            r"pickled weights \(pytorch_model\.bin\).*save_pretrained",
        ),
        (lambda d: only_an_index(d, {}), r"does not map"),
        (lambda d: only_an_index(d, {"weight_map": {"a": "../b.safetensors"}}), r"does not map"),
        (lambda d: only_an_index(d, {"weight_map": {"a": "b.bin"}}), r"does not map"),
        (
            lambda d: only_an_index(d, {"weight_map": {"a": "b.safetensors"}}),
            r"b\.safetensors is missing",
        ),
        (lambda d: (d / "vocab.json").write_text('{"!": 0, "the": 1}'), r"not GPT-2's vocabulary"),
        (
            lambda d: (d / "tokenizer.json").write_text('{"model": {"vocab": [["a", 0.5]]}}'),
            r"not GPT-2's vocabulary",
        ),
    ],
)
def test_a_damaged_source_is_refused(
    source: Path, target: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(source)
    with pytest.raises(CheckpointError, match=message):
        import_huggingface(source, target)
    assert not target.exists()


@pytest.mark.parametrize("convert", [import_huggingface, export_huggingface])
def test_the_source_is_never_the_target(
    source: Path, convert: Callable[[Path, Path], Path]
) -> None:
    with pytest.raises(CheckpointError, match="source itself"):
        convert(source, source / ".." / source.name)


def test_an_import_takes_no_checkpoints_place(source: Path, target: Path) -> None:
    save_checkpoint(random_model(OURS), target, card="# Mine\n")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(CheckpointError, match="holds a checkpoint already; name another folder"):
        import_huggingface(source, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path, target: Path) -> None:
    ours = save_checkpoint(random_model(OURS), tmp_path / "ours")
    edit(ours, model={**OURS.to_dict(), "context_length": 31})
    with pytest.raises(CheckpointError, match=r"wpe\.weight is \[32, 16\], not \[31, 16\]"):
        export_huggingface(ours, target)
    assert not target.exists()


def test_an_export_leaves_no_strange_tokenizer_beside_its_own(tmp_path: Path, target: Path) -> None:
    ours = save_checkpoint(random_model(OURS), tmp_path / "ours")
    target.mkdir()
    (target / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"other files: tokenizer\.json"):
        export_huggingface(ours, target)
    assert [path.name for path in target.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "sha256"),
    [  # those that tiktoken expects of OpenAI's vocab.bpe and encoder.json
        ("merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        ("vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    ],
)
def test_the_exported_tokenizer_is_openais_byte_for_byte(
    exported: Path, name: str, sha256: str
) -> None:
    assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == sha256


@pytest.fixture(scope="module")
def their_tokenizer(exported: Path) -> object:
    return AutoTokenizer.from_pretrained(exported)


@pytest.mark.parametrize(
    "text",
    [
        "Hello world, it's 2024; they'll've gone.",
        "  two\n\n\tlines \r\n and  spaces   ",
        "naïve Привет 狐 العربية हिन्दी 🦊👩‍👩‍👧 é",
        "a\x00b\x7f\xa0\u200b\u3000c .  ,",
        "aaaaaaaaaaaaaaaaaaaaaaa",
        "",
    ],
)
def test_the_exported_tokenizer_gives_our_ids(their_tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    ids = Tokenizer().encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == text


def test_the_exported_tokenizer_knows_its_limits(their_tokenizer) -> None:  # type: ignore[no-untyped-def]
    eos = Tokenizer().eos_id
    assert (their_tokenizer.bos_token_id, their_tokenizer.eos_token_id) == (eos, eos)
    assert their_tokenizer.model_max_length == 64


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_the_same_ids(their_tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    assert their_tokenizer(text)["input_ids"] == Tokenizer().encode(text)


@pytest.mark.parametrize("save", ["tokenizer.json", "vocab.json"])
def test_gpt2s_own_vocabulary_is_no_obstacle(  # type: ignore[no-untyped-def]
    source: Path, target: Path, exported: Path, their_tokenizer, save: str
) -> None:
    if save == "tokenizer.json":
        their_tokenizer.save_pretrained(source)
    else:
        (source / save).write_bytes((exported / save).read_bytes())
    assert (source / save).exists()
    import_huggingface(source, target)


def test_the_command_runs_where_transformers_is_not(source: Path, target: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['transformers'] = None;"
        "runpy.run_module('slm_core.huggingface', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-W", "error", "-c", code, "import", str(source), str(target)]
    subprocess.run(command, check=True)
    assert load_checkpoint(target).config == OURS


def test_the_commands_convert_and_print_errors_in_one_line(
    source: Path, target: Path, tmp_path: Path
) -> None:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    assert run("import", source, target) == (0, f"{target}\n", "")
    assert run("export", target, tmp_path / "back") == (0, f"{tmp_path / 'back'}\n", "")
    for arguments in (
        ("import", tmp_path / "nowhere", target),
        ("export", source, tmp_path / "other"),
        ("import", source, source / "config.json"),
    ):
        code, out, error = run(*arguments)
        assert (code, out, error.count("\n")) == (1, "", 1)
    assert "slm up" in run("import", "--help")[1]
    assert "transformers" in run("export", "--help")[1]
