"""A folder that one process at a time writes into."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.runs import STORIES, TOY, environment, train, write_data
from training import prepare
from training.lock import InUse, alone_in

HOLD = """
import sys
from pathlib import Path
from training.lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(InUse, match="another process is writing into"), alone_in(folder):
                pass
        finally:
            holder.kill()
    with alone_in(folder):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with alone_in(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with alone_in(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_second_run_is_refused_and_the_first_keeps_its_files(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data", STORIES * 4, STORIES), tmp_path / "run"
    assert train(f"{TOY} --steps 2", "--data", data, "--out", out).exit_code == 0
    before = sorted(out.rglob("*"))
    with alone_in(out):
        for arguments in ("--resume --steps 4", f"{TOY} --steps 2 --data {data}"):
            result = train(arguments, "--out", out)
            assert result.exit_code == 2
            said = " ".join(result.output.replace("│", " ").split())
            assert "another process is writing into" in said
    assert sorted(out.rglob("*")) == before
    assert train("--resume --steps 4", "--out", out).exit_code == 0


def test_a_text_is_prepared_once_at_a_time(tmp_path: Path) -> None:
    source = tmp_path / "stories.txt"
    source.write_text("".join(f"{story}\n<|endoftext|>\n" for story in STORIES))
    arguments = [str(source), "--out", str(tmp_path / "data"), "--valid-fraction", "0.5"]
    with alone_in(tmp_path / "data"):
        result = CliRunner().invoke(prepare.app, [*arguments, "--processes", "1"])
    assert result.exit_code == 1
    assert result.stderr.startswith("another process is writing into")
