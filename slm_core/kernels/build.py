"""Compiles the kernels: `python -m slm_core.kernels.build`. Takes some seconds.

Run at set-up and when an image is built, never by a worker. Builds every variant of this
architecture, so that an image made on one machine serves on others. Needs g++ (or what $CXX names).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slm_core.kernels import FLAGS, FOLDER, SOURCES, library_path, load, variants


class BuildError(Exception):
    """The kernels were not built; the message says why."""


def build() -> list[Path]:
    """Builds what is missing or out of date, and removes what is not needed any more.

    Each library is written under a temporary name and renamed: a killed build leaves nothing
    half-made. Raises BuildError.
    """
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not shutil.which(compiler[0]):
        raise BuildError(f"there is no C++ compiler {compiler[0]!r}; install g++, or set CXX")
    FOLDER.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        libraries = list(pool.map(lambda v: _compile(compiler, v), variants()))
    for stale in set(FOLDER.iterdir()) - set(libraries):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    try:
        load("baseline")
    except OSError as error:
        raise BuildError(f"the kernels were built, but cannot be loaded: {error}") from None
    return libraries


def _compile(compiler: list[str], variant: str) -> Path:
    path = library_path(variant)
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        thing, library = Path(folder) / "model.o", Path(folder) / "model.so"
        flags = [*FLAGS.split(), *variants()[variant].split()]
        _run([*compiler, *flags, "-c", str(SOURCES / "model.cpp"), "-o", str(thing)])
        # without -fopenmp, so that no second OpenMP runtime is linked: torch's serves
        _run([*compiler, "-shared", str(thing), "-o", str(library)])
        library.replace(path)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    try:
        libraries = build()
    except BuildError as error:
        sys.exit(f"{error}\nThe engine will run on PyTorch alone, which is slower.")
    sys.stdout.write("".join(f"built {path.name}\n" for path in libraries))


if __name__ == "__main__":
    main()
