"""Every command of docs/training.md, in the page's order, on a tiny text and with few steps."""

from __future__ import annotations

import os
import random
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_client.redis_server import free_port
from tests.docs.pages import ROOT, blocks
from tests.slm_client.processes import eventually

PAGE = "docs/training.md"
WORDS = "I you we send hope write soon money house rain answer sir dear letter friend late"

READY = "The service is ready"

# What makes a command of the page quick; the last of two equal flags counts.
_TRAIN = "--context 256 --batch 2 --steps 3 --eval-every 2 --no-compile --threads 1"
QUICKER = {
    "training.train --init-from": _TRAIN,
    "training.train --resume": "--steps 4 --no-compile --threads 1",
    "training.train": f"--preset tiny {_TRAIN}",
    "training.evaluate": "--samples 2",
    "training.compare": "--samples 1 --repeats 1 --tokens 40",
}


def commands() -> list[list[str]]:
    """Those of the page, in its order."""
    shells = [block.text for block in blocks(PAGE) if block.language == "sh"]
    assert len(shells) == len(blocks(PAGE)), "only commands are run here"
    lines = "".join(shells).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def quicker(command: list[str]) -> list[str]:
    for known, flags in QUICKER.items():
        if all(part in command for part in known.split()):
            return [*command, *flags.split()]
    return command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a text of stories and one of letters in it."""
    shutil.copy(ROOT / "examples" / "tinystories" / "stories.txt", tmp_path)
    rng = random.Random(1)
    letters = [" ".join(rng.choices(WORDS.split(), k=30)) for _ in range(400)]
    (tmp_path / "letters.txt").write_text("\n\n".join(letters), "utf-8")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules run in this process, which has imported torch already; others as they are."""
    if command[:2] == [".venv/bin/python", "-m"]:
        monkeypatch.setattr(sys, "argv", [command[2], *command[3:]])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        assert not end.value.code, command
    else:
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.fixture
def up(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Holds what serves, and stops it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.terminate()
        process.wait(30)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:runpy")
@pytest.mark.timeout(240)
def test_every_command_runs(
    folder: Path,
    up: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    port = str(free_port())
    printed = folder / "printed"
    monkeypatch.setenv("SLM_URL", f"http://127.0.0.1:{port}")
    for command in map(quicker, commands()):
        if command[:2] == [".venv/bin/slm", "up"]:
            with printed.open("wb") as file:
                arguments = [*command, "--port", port]
                up.append(subprocess.Popen(arguments, stdout=file, stderr=file))
            eventually(lambda: READY in printed.read_text() or up[0].poll() is not None, 60)
            assert up[0].poll() is None, printed.read_text()
        else:
            run(command, monkeypatch)
    assert "Once upon a time" in capfd.readouterr().out
    for made in ("mine/model.safetensors", "letters/model.safetensors", "compare/index.html"):
        assert (folder / "runs" / made).exists()
