"""The training command on a few sentences: what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slm_core import GPT, Engine, GPTConfig, SamplingParams, load_checkpoint, save_checkpoint
from tests.training.runs import POEMS, STORIES, TOY, course, log, states, train, write_data
from training.documents import load
from training.learner import Learner
from training.machine import CompilerFailed
from training.metrics import text_loss
from training.run import begin
from training.settings import asked_for, resolve
from training.start import start_of
from training.tokens import read_tokens


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("text") / "data", STORIES * 40, STORIES * 3)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trained"
    arguments = f"{TOY} --context 32 --steps 80 --eval-every 40 --eval-documents 5"
    result = train(arguments, "--data", data, "--out", out)
    assert result.exit_code == 0, result.output
    assert "slm up --model" in result.output
    return out


def test_it_learns_and_the_checkpoint_serves(trained: Path) -> None:
    first, last = log(trained)
    assert last["val_loss"] < 1.6 < first["val_loss"] < 6
    for folder in (trained, trained / "last"):
        model = load_checkpoint(folder)
        assert model.config == GPTConfig(2, 2, 32, 32)
        [completion] = Engine(model, slots=1).generate(
            "Once there was a", SamplingParams(max_tokens=12, temperature=0)
        )
        assert completion.text.startswith((" red", " big"))


def test_what_a_run_leaves(trained: Path, data: Path) -> None:
    first, last = log(trained)
    assert [first["step"], last["step"]] == [40, 80]
    assert last["tokens"] == 80 * 4 * 32
    assert set(last) == {
        *("step", "tokens", "seconds", "train_loss", "val_loss"),
        *("learning_rate", "tokens_per_second"),
    }
    assert last["learning_rate"] == 0
    assert [path.name for path in states(trained)] == ["step-00000040", "step-00000080"]
    recipe = resolve(asked_for({}, trained / "recipe.toml"))
    assert (recipe.preset, recipe.steps, recipe.epochs) == ("tiny", 80, None)
    samples = (trained / "samples.md").read_text()
    assert samples.count("## Step ") == 2
    assert samples.count("> **") == 6
    summary = json.loads((trained / "summary.json").read_text())
    loss = text_loss(load_checkpoint(trained).logits, load(data / "val.bin"), context_length=32)
    assert summary["val_loss"] == pytest.approx(loss.mean, rel=1e-4)
    assert summary["val_documents"] == 12


def test_the_curve_is_drawn(trained: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_is_said_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = train(f"{TOY} --steps 4 --eval-every 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.output.count("pip install matplotlib") == 1
    assert not (tmp_path / "run" / "curve.png").exists()


def test_the_same_recipe_gives_the_same_run(trained: Path, data: Path, tmp_path: Path) -> None:
    result = train(
        "", "--data", data, "--out", tmp_path / "run", "--recipe", trained / "recipe.toml"
    )
    assert result.exit_code == 0, result.output
    assert course(tmp_path / "run") == course(trained)
    weights = [
        (folder / "model.safetensors").read_bytes() for folder in (trained, tmp_path / "run")
    ]
    assert weights[0] == weights[1]


def test_the_whole_vocabulary_learns_as_well(data: Path, tmp_path: Path) -> None:
    arguments = f"{TOY} --vocabulary full --optimizer adamw --adam-lr 0.02 --warmup 0 --steps 8"
    result = train(arguments, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert log(tmp_path / "run")[-1]["val_loss"] < 9


@pytest.mark.timeout(400)  # compiling is hard work
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
def test_compiled(data: Path, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    arguments = f"{TOY} --layers 1 --dropout 0 --steps 10"
    for name in ("plain", "compiled"):
        flags = "--compile" if name == "compiled" else ""
        assert not counters["inductor"]
        result = train(f"{arguments} {flags}", "--data", data, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert (", compiled" in result.output) == (name == "compiled")
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["ok"] == 1
    assert not counters["graph_break"]
    plain, compiled = (log(tmp_path / name)[-1]["val_loss"] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, abs=0.02)


def test_an_average_dropout_a_stable_rate_and_prompts(data: Path, tmp_path: Path) -> None:
    arguments = (
        f"{TOY} --ema 0.9 --dropout 0.1 --schedule wsd --accumulate 2 --steps 30 --eval-every 15 "
        "--prompts Once"
    )
    result = train(arguments, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    first, last = log(tmp_path / "run")
    assert last["val_loss"] < first["val_loss"]
    assert first["learning_rate"] == 0.01
    config = load_checkpoint(tmp_path / "run").config
    assert config.dropout == 0.1
    assert "> **Once**" in (tmp_path / "run" / "samples.md").read_text()


def test_dropout_reaches_the_model(data: Path, tmp_path: Path) -> None:
    for dropout in (0.0, 0.3):
        given = {"preset": "tiny", "dropout": dropout}
        model = start_of(begin(tmp_path / "run", data, None, given)).model
        drops = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert set(drops) == {dropout}
        ids = torch.zeros(1, 8, dtype=torch.int64)
        same = torch.equal(model.train()(ids), model(ids))
        assert same == (dropout == 0)


def test_fine_tuning_lowers_the_new_loss_and_logs_the_old_one(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    poems = write_data(tmp_path / "poems", POEMS * 20, POEMS)
    arguments = (
        "--steps 30 --batch 4 --eval-every 15 --no-compile --precision fp32 --device cpu "
        f"--freeze 1 --freeze wpe --init-from {trained} --also-evaluate {data / 'val.bin'}"
    )
    result = train(arguments, "--data", poems, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    before, *_, after = log(tmp_path / "run")
    assert (before["step"], before["train_loss"], before["tokens_per_second"]) == (0, None, 0)
    [(name, old)] = before["also"].items()
    assert name == str(data / "val.bin")
    assert old == pytest.approx(log(trained)[-1]["val_loss"], abs=0.1)
    assert after["val_loss"] < before["val_loss"] - 1
    assert after["also"][name] > old
    start, end = load_checkpoint(trained), load_checkpoint(tmp_path / "run")
    assert torch.equal(start.wpe.weight, end.wpe.weight)
    assert torch.equal(start.h[0].get_parameter("ln_1.bias"), end.h[0].get_parameter("ln_1.bias"))
    assert not torch.equal(start.ln_f.bias, end.ln_f.bias)


def test_a_checkpoint_can_be_cut_to_a_shorter_context(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    arguments = f"--context 16 --steps 2 --no-compile --init-from {trained}"
    result = train(arguments, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert load_checkpoint(tmp_path / "run").config.context_length == 16


def test_a_model_of_individual_rows_keeps_them(data: Path, tmp_path: Path) -> None:
    """As one that was imported: nothing may be lost that it knew of types outside the text."""
    torch.manual_seed(0)
    given = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=16))
    save_checkpoint(given, tmp_path / "given", dtype=torch.bfloat16)
    arguments = f"--steps 2 --no-compile --init-from {tmp_path / 'given'}"
    result = train(arguments, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    rows = load_checkpoint(tmp_path / "run").wte.weight
    assert len(rows.unique(dim=0)) == len(rows)


def test_a_loss_that_is_not_finite_ends_the_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = f"{TOY} --steps 200 --save-every 1 --warmup 0.5 --muon-lr 1e30 --adam-lr 1e30"
    result = train(arguments, "--data", data, "--out", out)
    assert result.exit_code == 1
    message = " ".join(result.output.split())
    assert "became infinite or NaN at step" in message
    assert "--muon-lr" in message
    assert "last good state" in message
    [*_, newest] = states(out)
    assert all(torch.isfinite(p).all() for p in _tensors(newest).values())


def _tensors(state: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(state / "tensors.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--precision fp16", "fp16 needs CUDA"),
        ("--batch 2 --accumulate 3", "cannot be cut into 3 micro-batches"),
        ("--context 5000", "the training text has"),
        ("--freeze nothing", "no parameter is named 'nothing'"),
        ("--freeze 0", "the first 0 blocks are none"),
        ("--layers 0", "layers must be at least 1"),
        ("--optimizer sgd", "muon"),
        ("--init-from nowhere", "preset: the shape is that of the checkpoint"),
        ("--also-evaluate nowhere.bin", "nowhere.bin"),
        ("--width 33", "not a multiple of n_head"),
        ("--resume", "there is no state in"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    data: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    result = train(f"{TOY} --steps 2 {arguments}", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    result = train("--init-from nowhere --steps 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "no checkpoint at nowhere" in " ".join(result.output.replace("│", " ").split())


def test_cuda_is_missed_by_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = train(f"{TOY} --device cuda --steps 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "finds no CUDA here" in result.output


def test_a_missing_compiler_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    result = train(f"{TOY} --compile --steps 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--no-compile" in result.output


def test_tensorboard_is_optional(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = train(f"{TOY} --tensorboard --steps 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "pip install tensorboard" in " ".join(result.output.replace("│", " ").split())


def test_tensorboard_gets_the_log(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = train(f"{TOY} --tensorboard --steps 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_run_is_never_overwritten(trained: Path, data: Path) -> None:
    result = train(f"{TOY} --steps 2", "--data", data, "--out", trained)
    assert result.exit_code == 2
    assert "--resume goes on" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [TOY, "--init-from {model}", "--preset tiny"])
def test_a_checkpoint_is_never_overwritten(data: Path, tmp_path: Path, arguments: str) -> None:
    model = save_checkpoint(GPT(GPTConfig(1, 1, 16, 16)), tmp_path / "model", card="# Mine\n")
    before = {path: path.read_bytes() for path in model.iterdir()}
    result = train(f"{arguments.format(model=model)} --steps 2", "--data", data, "--out", model)
    assert result.exit_code == 2
    assert "holds a checkpoint" in " ".join(result.output.replace("│", " ").split())
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_a_folders_name_is_no_markup(data: Path, tmp_path: Path) -> None:
    result = train(f"{TOY} --steps 2", "--data", data, "--out", tmp_path / "x[/b]")
    assert result.exit_code == 0, result.output
    assert "x[/b]" in result.output


def test_a_compiler_that_fails_is_told_in_a_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CompilerFailed("C++ compile error")

    monkeypatch.setattr(Learner, "step", fail)
    result = train(f"{TOY} --steps 2", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("torch.compile failed: C++ compile error\n--no-compile")


def test_weights_that_are_not_finite_are_no_good_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may spoil them after a loss and a gradient that were finite."""
    step = Learner.step

    def spoil(self: Learner, rows: Any, rate: float, number: int) -> torch.Tensor:
        values = step(self, rows, rate, number)
        if number == 4:
            with torch.no_grad():
                self.model.ln_f.bias.fill_(torch.inf)
        return values

    monkeypatch.setattr(Learner, "step", spoil)
    out = tmp_path / "run"
    result = train(f"{TOY} --steps 9 --save-every 2", "--data", data, "--out", out)
    assert result.exit_code == 1
    assert "weights became infinite or NaN at step 4" in " ".join(result.output.split())
    assert [path.name for path in states(out)] == ["step-00000002"]


def test_data_is_asked_for(tmp_path: Path) -> None:
    result = train("--steps 2", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--data is missing" in result.output


def test_evaluated_text_may_be_anything_that_can_be_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("".join(f"{s}\n<|endoftext|>\n" for s in POEMS))
    arguments = f"{TOY} --steps 2 --also-evaluate {tmp_path / 'other.txt'}"
    result = train(arguments, "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert len(read_tokens(data / "val.bin")) > 0
    assert log(tmp_path / "run")[-1]["also"][str(tmp_path / "other.txt")] > 0
