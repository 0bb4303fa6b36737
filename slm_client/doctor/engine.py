"""What generates: torch, the compiler, the native kernels, the models."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm_client import manifests
from slm_client.cores import cores
from slm_client.doctor.finding import Finding, ending, fault, last_line, ok, warning
from slm_client.doctor.packages import install_command
from slm_client.siblings import module, run

_LOOK_SECONDS = 120.0  # torch's first import from a slow disk takes a while
_LOAD_SECONDS = 600.0  # of all models
_SLOW = "the engine runs on PyTorch alone, several times slower"
_MORE_MEMORY = "Memory has probably run out: stop what else runs here, or raise the limit."
_BUILD = f"{sys.executable} -m slm_core.kernels.build"
_PROGRAM = "#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"


def look() -> Iterator[Finding]:
    """Torch, the compiler and the kernels."""
    done = run(module("slm_core.kernels"), capture=True, timeout=_LOOK_SECONDS)
    if done.returncode:
        says = f"torch cannot be used: {ending(done)}."
        yield fault("torch", says, f"`{install_command('worker')}`")
        return
    found = json.loads(done.stdout)
    yield from _torch(found)
    kernels = found["kernels"]  # by variant, the best first: runs, built, missing
    runs = [variant for variant, state in kernels.items() if state == "runs"]
    problem = _compiler_problem()
    if not problem:
        yield ok("compiler", f"{shlex.join(_compiler())} compiles with OpenMP.")
    elif runs:
        yield ok("compiler", f"{problem}, and none is needed: the kernels are built.")
    else:
        yield warning("compiler", f"{problem}.", "`sudo apt-get install g++`, or set CXX.")
    first = "" if not problem else "With a compiler: "
    if runs:
        yield ok("kernels", f"{runs[0]} runs here.")
    elif "built" in kernels.values():
        says = f"they are built, but cannot be loaded: {last_line(done.stderr)}; {_SLOW}."
        yield warning("kernels", says, f"{first}`rm -r slm_core/kernels/built; {_BUILD}`")
    else:
        yield warning("kernels", f"not built: {_SLOW}.", f"{first}`{_BUILD}`")


def _torch(found: dict[str, Any]) -> Iterator[Finding]:
    """`found`: what `python -m slm_core.kernels` prints."""
    devices = ", ".join(found["cuda"]) or "no CUDA device"
    yield ok("torch", f"{found['torch']}, {found['threads']} CPU threads, {devices}.")
    if not found["openmp"]:
        says = "this torch has no OpenMP: it computes on one core."
        yield warning("torch", says, "Take a build from PyPI or conda-forge.")
    if os.environ.get("SLM_DEVICE") == "cuda" and not found["cuda"]:
        why = "sees none" if found["cuda_build"] else "is a build for CPUs"
        says = f"SLM_DEVICE asks for CUDA, and torch {why}."
        mend = "`nvidia-smi` shows the driver; torch from PyPI is built for CUDA on Linux."
        yield fault("torch", says, mend)
    most, asked = cores(), os.environ.get("SLM_THREADS", "")
    if asked.isdecimal() and int(asked) > most:
        says = f"SLM_THREADS is {asked}, and this process may use {most} cores: many times slower."
        yield warning("torch", says, f"`export SLM_THREADS={most}`, or less for several workers.")


def _compiler() -> list[str]:
    """As `slm_core.kernels.build` takes it."""
    return shlex.split(os.environ.get("CXX") or "g++")


def _compiler_problem() -> str:
    """Why the kernels could not be built; empty if they could."""
    compiler = _compiler()
    if not compiler or not shutil.which(compiler[0]):
        return f"there is no C++ compiler {shlex.join(compiler)}"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "omp.cpp", Path(folder) / "omp.so"
        source.write_text(_PROGRAM)
        # Linked without -fopenmp, as the kernels are: torch's runtime serves.
        flags = f"-std=c++17 -fPIC -fopenmp -c {source} -o {source}.o"
        for command in (
            [*compiler, *flags.split()],
            [*compiler, "-shared", f"{source}.o", "-o", str(library)],
        ):
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=60
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{compiler[0]} cannot be run: {error}"
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                return f"{compiler[0]} compiles nothing with OpenMP: {(errors or ['?'])[0]}"
    return ""


def models(data_dir: Path) -> Iterator[Finding]:
    """Every model that `slm up` would serve: its files, and some tokens of it."""
    models_file = manifests.models_file(data_dir)
    env = {"SLM_MODELS_FILE": models_file} if models_file else {}
    checked = run(module("slm_jobs.manifest"), env=env, capture=True, timeout=_LOOK_SECONDS)
    if checked.returncode:
        mend = "Mend what it names; `slm models check` checks again."
        yield fault("models", last_line(checked.stderr), mend)
        return
    done = run(module("worker.tryout"), env=env, capture=True, timeout=_LOAD_SECONDS)
    trying = ""
    for line in done.stdout.splitlines():
        tried = json.loads(line)
        if "trying" in tried:
            trying = f" while trying {tried['trying']}"
            continue
        trying = ""
        if "fault" in tried:
            mend = f"Put a whole checkpoint into {tried['checkpoint']}, or take out its entry."
            yield fault("models", f"{tried['model']}: {tried['fault']}", mend)
        else:
            told = (
                f"{tried['tokens']} tokens in {tried['seconds']:.1f} s with {tried['fingerprint']}"
            )
            yield ok("models", f"{tried['model']} generates: {told}.")
    if done.returncode:
        mend = _MORE_MEMORY if done.returncode == -signal.SIGKILL else ""
        says = f"they cannot be tried: {ending(done).rstrip('.')}{trying}."
        yield fault("models", says, mend)
