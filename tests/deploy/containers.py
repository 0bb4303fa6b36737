"""Building images and running them, with docker or podman, or buildah where there is no engine.

Containers share this machine's network: what they listen on is on loopback here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import psutil

ROOT = Path(__file__).parents[2]
DOCKERFILES = {
    "slm-api": "Dockerfile.api",
    "slm-worker": "Dockerfile.worker",
    "slm-space": "deploy/space/Dockerfile",
}


class Container(Protocol):
    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs another command in it, to its end."""

    def stop(self, seconds: float) -> int:
        """SIGTERM. Returns the exit code; fails if it takes longer."""

    def kill(self) -> None: ...


class Tool(Protocol):
    def build(self, image: str, arguments: list[str]) -> None: ...

    def size(self, image: str) -> int:
        """Bytes, unpacked."""

    def health(self, image: str) -> list[str]:
        """The command of its HEALTHCHECK."""

    def start(self, image: str, env: Mapping[str, str], command: list[str]) -> Container:
        """`command`: its own, if there is none."""


def find_tool(name: str | None) -> Tool:
    """The named one, else the first that is here. Exits if there is none."""
    for each in (name,) if name else ("docker", "podman", "buildah"):
        if shutil.which(each) and (each == "buildah" or _works(each)):
            return Buildah() if each == "buildah" else Engine(each)
    raise SystemExit(f"{name or 'docker, podman or buildah'}: not here, or without its service")


def _works(engine: str) -> bool:
    return subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0


def _output(command: Iterable[str]) -> str:
    done = subprocess.run(list(command), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


class Engine:
    """docker or podman."""

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, image: str, arguments: list[str]) -> None:
        command = [self._name, "build", "--file", DOCKERFILES[image], "--tag", image]
        subprocess.run([*command, *arguments, "."], check=True, cwd=ROOT)

    def size(self, image: str) -> int:
        return int(_output([self._name, "image", "inspect", "--format", "{{.Size}}", image]))

    def health(self, image: str) -> list[str]:
        found = json.loads(_output([self._name, "image", "inspect", image]))[0]
        config = found.get("Config", {}).get("Healthcheck") or found["HealthCheck"]
        command: list[str] = config["Test"][1:]
        return command

    def start(self, image: str, env: Mapping[str, str], command: list[str]) -> Container:
        # As docker-compose.yml has it.
        hardened = "--read-only --tmpfs /tmp:size=64m --cap-drop ALL"
        if image == "slm-space":
            hardened = "--cap-drop ALL"
        given = [part for item in env.items() for part in ("--env", "=".join(item))]
        start = [self._name, "run", "--detach", "--network", "host", *hardened.split()]
        return _EngineContainer(self._name, _output([*start, *given, image, *command]))


class _EngineContainer:
    def __init__(self, engine: str, identity: str) -> None:
        self._engine = engine
        self._id = identity

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._engine, "exec", self._id, *command], capture_output=True, text=True, check=False
        )

    def stop(self, seconds: float) -> int:
        _output([self._engine, "stop", "--time", str(round(seconds)), self._id])
        code = _output([self._engine, "inspect", "--format", "{{.State.ExitCode}}", self._id])
        self.kill()
        return int(code)

    def kill(self) -> None:
        command = [self._engine, "rm", "--force", self._id]
        subprocess.run(command, capture_output=True, check=False)


class Buildah:
    """Runs things in a chroot: files, user and environment are the image's, and nothing else is
    apart from this machine. Needs root."""

    def build(self, image: str, arguments: list[str]) -> None:
        command = ["buildah", "bud", "--isolation", "chroot", "--file", DOCKERFILES[image]]
        subprocess.run([*command, "--tag", image, *arguments, "."], check=True, cwd=ROOT)

    def size(self, image: str) -> int:
        container = _output(["buildah", "from", image])
        try:
            folder = _output(["buildah", "mount", container])
            return int(_output(["du", "-sxB1", folder]).split()[0])
        finally:
            _output(["buildah", "rm", container])

    def _config(self, image: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(_output(["buildah", "inspect", image]))
        docker = found["Docker"]
        config: dict[str, object] = docker["config"] if isinstance(docker, dict) else {}
        return config

    def health(self, image: str) -> list[str]:
        """buildah keeps none in images of its own format: it is read from the Dockerfile."""
        text = (ROOT / DOCKERFILES[image]).read_text().replace("\\\n", " ")
        [line] = [line for line in text.splitlines() if line.startswith("HEALTHCHECK")]
        command: list[str] = json.loads(line.partition(" CMD ")[2])
        return command

    def start(self, image: str, env: Mapping[str, str], command: list[str]) -> Container:
        words = command or self._config(image)["Cmd"]
        return _BuildahContainer(_output(["buildah", "from", image]), env, words)


class _BuildahContainer:
    def __init__(self, name: str, env: Mapping[str, str], command: object) -> None:
        self._name = name
        self._env = [part for item in env.items() for part in ("--env", "=".join(item))]
        words = command if isinstance(command, list) else []
        self._process = subprocess.Popen(self._command(words), start_new_session=True)

    def _command(self, words: list[str]) -> list[str]:
        run = ["buildah", "run", "--isolation", "chroot", *self._env]
        return [*run, self._name, "--", *words]

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        words = self._command(command)
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def _inner(self) -> psutil.Process:
        """The container's first process: the first below those of buildah."""
        below = psutil.Process(self._process.pid)
        while "buildah" in (name := below.name()) or name == "exe":
            [below] = below.children()
        return below

    def stop(self, seconds: float) -> int:
        self._inner().send_signal(signal.SIGTERM)
        code = self._process.wait(seconds)
        _output(["buildah", "rm", self._name])
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            _output(["buildah", "rm", self._name])
