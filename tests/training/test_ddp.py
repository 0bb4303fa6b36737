"""Several processes under torchrun train as one does, and end together."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.training.runs import (
    STORIES,
    TOY,
    course,
    environment,
    eventually,
    states,
    tensors,
    train,
    write_data,
)
from training.ranks import Ranks

# AdamW: Muon rounds to bf16, which makes more of the last bits of a sum.
SETTINGS = f"{TOY} --optimizer adamw --batch 6 --steps 24 --eval-every 8 --ema 0.9 --threads 1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("text") / "data", STORIES * 40, STORIES)


def torchrun(arguments: str, *more: str | Path) -> list[str]:
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*runner, "-m", "training.train", *arguments.split(), *map(str, more)]


def test_two_ranks_make_the_steps_of_one(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(SETTINGS, "--data", data, "--out", one).exit_code == 0
    arguments = torchrun(f"{SETTINGS} --accumulate 2", "--data", data, "--out", two)
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done in") == 1
    assert "2 ranks" in done.stdout
    assert [entry["step"] for entry in course(two)] == [8, 16, 24]
    for alone, together in zip(course(one), course(two), strict=True):
        for key, value in alone.items():
            assert together[key] == pytest.approx(value, abs=2e-4), key
    mine, theirs = tensors(one), tensors(two)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        np.testing.assert_allclose(theirs[name], tensor, atol=1e-4, err_msg=name)


def test_when_a_rank_dies_all_end_and_a_single_process_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = torchrun(f"{TOY} --epochs 1e6 --save-every 5", "--data", data, "--out", out)
    child = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: states(out))
        ranks = psutil.Process(child.pid).children()
        [victim] = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
        victim.kill()
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode != 0
    assert "SIGKILL" in told or "Signal 9" in told
    assert not [rank for rank in ranks if rank.is_running() and rank.status() != "zombie"]
    last = int(states(out)[-1].name.removeprefix("step-"))
    result = train(f"--resume --steps {last + 2}", "--out", out)
    assert result.exit_code == 0, result.output


def test_a_signal_to_torchrun_saves_the_state(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = torchrun(f"{TOY} --epochs 1e6 --save-every 5", "--data", data, "--out", out)
    child = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        eventually(lambda: states(out))
        child.send_signal(signal.SIGTERM)
        told, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert "stopped at step" in told
    step = int(told.split("stopped at step ")[1].split(";")[0].replace(",", ""))
    assert states(out)[-1].name == f"step-{step:08d}"


def test_what_does_not_fit_is_told_by_the_rank_that_finds_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, label in (("0", ""), ("1", "rank 1: no data in")):
        monkeypatch.setenv("RANK", rank)
        result = train(SETTINGS, "--data", tmp_path, "--out", tmp_path / "run")
        assert result.exit_code == 2
        assert "no data in" in result.stderr
        assert result.stderr.startswith(label)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = train(SETTINGS, "--device", "cuda", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith("rank 1: 1 GPUs, but more ranks")


def test_parts_of_a_batch_add_up_to_it() -> None:
    rows = np.arange(7)
    for world, parts in ((1, 1), (1, 3), (2, 2), (3, 2), (2, 5)):
        shares = [part for r in range(world) for part in Ranks(r, world, r).share(rows, parts)]
        assert [row for part, _ in shares for row in part] == rows.tolist()
        assert sum(share for _, share in shares) == pytest.approx(1)
        assert all(share == len(part) / 7 for part, share in shares)
