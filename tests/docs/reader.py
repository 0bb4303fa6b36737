"""Somebody who follows a page: runs its commands and its code, in its order, in one folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from slm_client.redis_server import free_port
from slm_jobs.manifest import Manifest
from tests.docs.pages import ROOT, Block, blocks
from tests.docs.shapes import Mismatch, Shapes, documents

OUTPUT = ("json", "text", "http")  # right after commands: what they print
SECONDS = 60  # for one block
# What commands take where nothing is set; tests have other ports.
DEFAULTS = {"SLM_URL": "http://127.0.0.1:8000", "SLM_REDIS_URL": "redis://127.0.0.1:6379/0"}
_PORT = re.compile(
    r"(?<=127\.0\.0\.1:)\d{4,5}|(?<=localhost:)\d{4,5}|(?<=--port )\d{4,5}|(?<=-p )\d{4,5}"
)
_WENT_WRONG = re.compile(r'urn:slm:problem:|"error": ?\{"message"')
_WRITTEN = re.compile(r"(?:^|\s)-o (\S+\.json)(?!\S)")


def checkout(folder: Path) -> Path:
    """What somebody has who has cloned the repository and run `make`, with room for more files."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("data", "runs"):
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


class Reader:
    """Runs blocks in `folder`. `ports` says where the ports that pages name really are; others that
    they name become free ones. Left, whatever it started in the background is ended."""

    def __init__(self, folder: Path, ports: Mapping[int, int]) -> None:
        self._folder = folder
        self._shapes = Shapes()
        self._ports = dict(ports)
        self._env = {name: v for name, v in os.environ.items() if not name.startswith("SLM_")}
        self._env |= {name: self._as_here(address) for name, address in DEFAULTS.items()}
        self._env["PATH"] = os.pathsep.join((f"{folder}/.venv/bin", self._env.get("PATH", "")))
        self._names: dict[str, Any] = {"__name__": "page"}  # what Python blocks have defined
        self._groups: list[int] = []
        self._printed: str | None = None  # by the block before, if it was of commands or code

    def read(self, page: str) -> None:
        """Raises what went wrong, after the place of the block."""
        for block in blocks(page):
            try:
                self.run(block)
            except Exception as error:
                error.add_note(f"at {block}")
                raise
        self._expect_no_error()

    def run(self, block: Block) -> None:
        printed, self._printed = self._printed, None
        if block.not_run:
            return
        if block.saved_as:
            self._check(block)
            target = self._folder / block.saved_as
            target.write_text(self._as_here(block.text), "utf-8")
        elif block.language in OUTPUT:
            if printed is not None:
                self._shapes.compare(block.language, block.text, printed)
            else:
                self._check(block)
        elif block.language in ("sh", "python"):
            self._printed = printed
            self._expect_no_error()
            self._printed = (self._sh if block.language == "sh" else self._python)(block)
        else:
            self._check(block)

    def _check(self, block: Block) -> None:
        """What is no command can at least be read by who is meant to."""
        if block.language == "python":
            compile(block.text, str(block), "exec")
        elif block.language == "json":
            documents(block.text)
        elif block.language == "toml":  # a manifest of models
            file = self._folder / ".checked" / "models.toml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text, "utf-8")
            Manifest.load(file)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language not in ("text", "csv"):
            raise Mismatch(
                f"nobody knows how to run {block.language or 'a block without language'}"
            )

    def _expect_no_error(self) -> None:
        """Errors are shown where a page means them."""
        if self._printed and _WENT_WRONG.search(self._printed):
            raise Mismatch(f"an error that the page does not show:\n{self._printed}")

    def _sh(self, block: Block) -> str:
        """What the commands print. What they set stays set."""
        out, err, state = (self._folder / f".{name}" for name in ("out", "err", "state"))
        script = f"set -ea -o pipefail\n{self._as_here(block.text)}\nenv -0 > .state\n"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [_bash(block, self._env["PATH"]), "-c", script],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            status = process.wait(SECONDS)
        printed = out.read_text("utf-8", "replace")
        if status:
            raise Mismatch(f"status {status}\n{printed}\n{err.read_text('utf-8', 'replace')}")
        for name in _WRITTEN.findall(block.text):
            if _WENT_WRONG.search((self._folder / name).read_text("utf-8")):
                raise Mismatch(f"{name} holds an error")
        pairs = state.read_bytes().decode().rstrip("\0").split("\0")
        self._env = dict(pair.split("=", 1) for pair in pairs)
        return printed

    def _python(self, block: Block) -> str:
        code = compile(self._as_here(block.text), str(block), "exec")
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(self._folder)
            for name, value in self._env.items():
                patch.setenv(name, value)
            exec(code, self._names)  # noqa: S102
        return printed.getvalue()

    def _as_here(self, text: str) -> str:
        """With the ports and ids that there are here."""
        return _PORT.sub(self._port, self._shapes.translate(text))

    def _port(self, found: re.Match[str]) -> str:
        port = int(found[0])
        if port not in self._ports:
            self._ports[port] = free_port()
        return str(self._ports[port])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _bash(block: Block, path: str) -> str:
    """Skips the test where a program is missing that is none of ours."""
    needed = re.findall(r"^\s*(curl|gzip|redis-cli|redis-server)\b", block.text, re.MULTILINE)
    for program in ("bash", *needed):
        if not shutil.which(program, path=path):
            pytest.skip(f"{block} needs {program}")
    return shutil.which("bash") or ""
