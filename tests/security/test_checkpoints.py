"""A checkpoint from a stranger: nothing in it runs, and nothing in it takes more than its size."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm_core import GPTConfig, load_checkpoint, save_checkpoint
from slm_core.checkpoint import read_perplexity
from slm_core.errors import CheckpointError
from slm_core.huggingface import export_huggingface, import_huggingface
from tests.slm_core.conftest import random_model

ROOT = Path(__file__).parents[2]
FOLDERS = ("api", "slm_client", "slm_core", "slm_jobs", "training", "worker")
WEIGHTS = "model.safetensors"
PICKLED = ("pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt", "model.npy")

Load = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, vocab_size=100)
    return save_checkpoint(random_model(config), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A checkpoint to be damaged."""
    return shutil.copytree(sound, tmp_path / "checkpoint")


@pytest.fixture(params=["ours", "hugging face's"])
def format_(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> tuple[Path, Load]:
    """A folder of either format, and what reads it."""
    if request.param == "ours":
        return folder, load_checkpoint
    theirs = export_huggingface(folder, tmp_path / "theirs")
    return theirs, lambda source: import_huggingface(source, tmp_path / "imported")


# Pickles


class _Bomb:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    trace = tmp_path / "it ran"
    armed = pickle.dumps(_Bomb(trace))
    pickle.loads(armed)  # noqa: S301 - it is ours
    assert trace.exists()
    trace.unlink()
    yield armed
    assert not trace.exists()


def test_pickles_beside_weights_are_not_read(format_: tuple[Path, Load], bomb: bytes) -> None:
    folder, load = format_
    for name in PICKLED:
        (folder / name).write_bytes(bomb)
    load(folder)


@pytest.mark.parametrize("name", PICKLED)
def test_pickles_are_no_weights(format_: tuple[Path, Load], bomb: bytes, name: str) -> None:
    folder, load = format_
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(bomb)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing|never read"):
        load(folder)


def test_a_pickle_by_the_name_of_weights(format_: tuple[Path, Load], bomb: bytes) -> None:
    folder, load = format_
    (folder / WEIGHTS).write_bytes(bomb)
    with pytest.raises(CheckpointError, match="cannot read"):
        load(folder)


def test_an_index_leads_to_no_pickle(folder: Path, bomb: bytes, tmp_path: Path) -> None:
    theirs = export_huggingface(folder, tmp_path / "theirs")
    (theirs / WEIGHTS).unlink()
    (theirs / "pytorch_model.bin").write_bytes(bomb)
    for file in ("pytorch_model.bin", "../evil.safetensors", "/evil.safetensors", "\0.safetensors"):
        index = {"weight_map": {"wte.weight": file}}
        (theirs / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError):
            import_huggingface(theirs, tmp_path / "imported")


_UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_UNSAFE_CALLS = {
    "torch.load",
    "torch.jit.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "eval",
    "exec",
}


def test_nothing_of_ours_unpickles() -> None:
    found = []
    for path in sorted(file for name in FOLDERS for file in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names):
                    unsafe = any(name.name.partition(".")[0] in _UNSAFE for name in names)
                case ast.ImportFrom(module=module):
                    unsafe = (module or "").partition(".")[0] in _UNSAFE
                case ast.Call(func):
                    unsafe = ast.unparse(func) in _UNSAFE_CALLS
                case _:
                    continue
            if unsafe:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


# Hostile safetensors


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HUGE = 2**40
HOSTILE = {
    "nothing": b"",
    "a length and no header": struct.pack("<Q", 100),
    "a header without end": safetensors({}, length=2**63),
    "a header beyond the file": safetensors({}, length=2**30),
    "no JSON": safetensors(b"{" * 100),
    "nested": safetensors(b'{"a":' * 100_000),
    "a list": safetensors([]),
    "a huge shape": safetensors({"a": tensor([HUGE, HUGE], [0, 4])}, b"1234"),
    "a shape that overflows": safetensors({"a": tensor([2**32, 2**32, 2**32], [0, 0])}),
    "huge offsets": safetensors({"a": tensor([HUGE], [0, 4 * HUGE])}, b"1234"),
    "offsets that overflow": safetensors({"a": tensor([1], [2**64 - 4, 2**64])}, b"1234"),
    "a negative shape": safetensors({"a": tensor([-1], [0, 4])}, b"1234"),
    "negative offsets": safetensors({"a": tensor([1], [-4, 0])}, b"1234"),
    "offsets backwards": safetensors({"a": tensor([1], [4, 0])}, b"1234"),
    "overlaps": safetensors({"a": tensor([1], [0, 4]), "b": tensor([1], [2, 6])}, b"123456"),
    "the same place twice": safetensors(
        {f"{i}": tensor([256], [0, 1024]) for i in range(1000)}, bytes(1024)
    ),
    "a hole": safetensors({"a": tensor([1], [4, 8])}, b"12345678"),
    "more than it tells": safetensors({"a": tensor([1], [0, 4])}, b"12345678"),
    "less than it tells": safetensors({"a": tensor([2], [0, 8])}, b"1234"),
    "an unknown type": safetensors({"a": tensor([1], [0, 4], "PICKLE")}, b"1234"),
    "a type that is none": safetensors({"a": tensor([1], [0, 4], {})}, b"1234"),
    "a shape that is none": safetensors({"a": tensor("1", [0, 4])}, b"1234"),
    "another tensor": safetensors({"a": tensor([1], [0, 4])}, b"1234"),
    "no elements": safetensors({"a": tensor([0, HUGE], [0, 0])}),
    "half bytes": safetensors({"wte.weight": tensor([100, 16], [0, 800], "F4")}, bytes(800)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_weights(format_: tuple[Path, Load], content: bytes) -> None:
    folder, load = format_
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError):
        load(folder)


# Hostile configs

numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2**31, 2**63, 10**18])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=5)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
fields = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size", "dropout", "wings")
models = st.dictionaries(st.sampled_from(fields), values, max_size=3) | values
_examples = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_examples
@given(changes=models)
def test_any_config(folder: Path, changes: object) -> None:
    """It is refused, or is what it was: the weights fit no other."""
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, vocab_size=100).to_dict()
    model = {**shape, **changes} if isinstance(changes, dict) else changes
    (folder / "config.json").write_text(json.dumps({"tokenizer": "gpt2", "model": model}))
    try:
        loaded = load_checkpoint(folder)
    except CheckpointError:
        return
    sizes = loaded.config.to_dict().items() - {("dropout", loaded.config.dropout)}
    assert {**shape, **dict(sizes)} == {**shape}


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5_000, b'"x"']
)
def test_configs_that_are_none(format_: tuple[Path, Load], content: bytes) -> None:
    folder, load = format_
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(folder)


def test_a_perplexity_beyond_numbers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "perplexity": {"fp32": 10**400}}))
    with pytest.raises(CheckpointError):
        read_perplexity(folder)


# Memory

_LOAD = """
import resource, sys
from slm_core import load_checkpoint
from slm_core.errors import CheckpointError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for folder in sys.argv[1:]:
    try:
        load_checkpoint(folder)
    except CheckpointError:
        continue
    raise SystemExit(f"{folder} was loaded")
print(peak() - before)
"""


def test_refusing_costs_little(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, whose peak is its alone: what is promised is never made room for."""
    folders = []
    many = safetensors({f"tensor {i}": tensor([0], [0, 0]) for i in range(20_000)})
    for number, content in enumerate([*HOSTILE.values(), many]):
        folders.append(shutil.copytree(folder, tmp_path / f"weights {number}"))
        (folders[-1] / WEIGHTS).write_bytes(content)
    for layers in (256, 257, 10**9):  # the most, which these weights have not; and too many
        folders.append(shutil.copytree(folder, tmp_path / f"layers {layers}"))
        config = json.loads((folder / "config.json").read_text())
        config["model"]["n_layer"] = layers
        (folders[-1] / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) << 10 < 300 << 20
