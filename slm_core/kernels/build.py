"""Compiles the kernels: `python -m slm_core.kernels.build`. Takes some seconds.

Run at set-up and when an image is built, never by a worker. Builds every variant of this
architecture, so that an image made on one machine serves on others. Needs g++ (or what $CXX names).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slm_core.kernels import FLAGS, FOLDER, SOURCES, library_path, variants


class BuildError(Exception):
    """No kernels were built; the message says why."""


def build() -> dict[str, Path | str]:
    """Builds what is missing or out of date, and removes what is not needed any more.

    Returns the library of each variant, or why the compiler could not make it. Each is written
    under a temporary name, loaded, and renamed: a killed build leaves nothing half-made. Raises
    BuildError if not even the baseline could be built.
    """
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if not shutil.which(compiler[0]):
        raise BuildError(f"there is no C++ compiler {compiler[0]!r}; install g++, or set CXX")
    try:
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time
            return _build(compiler)
    except OSError as error:
        raise BuildError(f"cannot write into {FOLDER}: {error}") from None


def _build(compiler: list[str]) -> dict[str, Path | str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(
            zip(variants(), pool.map(lambda v: _compile(compiler, v), variants()), strict=True)
        )
    for stale in set(FOLDER.iterdir()) - {FOLDER / ".lock", *made.values()}:
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    if isinstance(made["baseline"], str):
        raise BuildError(made["baseline"])
    return made


def _compile(compiler: list[str], variant: str) -> Path | str:
    path = library_path(variant)
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        thing, library = Path(folder) / "model.o", Path(folder) / "model.so"
        compiled = [*compiler, *FLAGS.split(), *variants()[variant].split()]
        commands = (
            [*compiled, "-c", str(SOURCES / "model.cpp"), "-o", str(thing)],
            # without -fopenmp, so that no second OpenMP runtime is linked: torch's serves
            [*compiler, "-shared", str(thing), "-o", str(library)],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}"
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return f"what {compiler[0]} made cannot be loaded: {error}"
        library.replace(path)
    return path


def main() -> None:
    try:
        made = build()
    except BuildError as error:
        sys.exit(f"{error}\nThe engine will run on PyTorch alone, which is slower.")
    for variant, outcome in made.items():
        how = f"not built: {outcome}" if isinstance(outcome, str) else "built"
        sys.stdout.write(f"kernels for {variant}: {how}\n")


if __name__ == "__main__":
    main()
