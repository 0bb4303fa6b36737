"""The engine's native CPU kernels: which are built, which this processor runs, and loading them.

The C++ beside this file is compiled by `python -m slm_core.kernels.build`, once, at set-up. A
library is named after a digest of its sources, so one that is out of date is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
from functools import cache
from pathlib import Path

import torch  # noqa: F401 - brings the OpenMP runtime that the kernels then find

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
FOLDER = SOURCES / "built"
FLAGS = (
    "-std=c++17 -O3 -fPIC -fopenmp -ffp-contract=off -fno-math-errno -fwrapv -fvisibility=hidden"
    " -Wall -Wextra -Wno-psabi"
)
X86_64 = {  # variant -> instruction sets; the first that the processor has is the best
    "avx512_bf16": "-march=x86-64-v4 -mavx512vnni -mavx512bf16",
    "avx512": "-march=x86-64-v4 -mavx512vnni",
    "avx2": "-march=x86-64-v3",
    "baseline": "-march=x86-64",
}
OTHERS = {"baseline": ""}  # what the compiler takes for granted, such as NEON on aarch64


def variants() -> dict[str, str]:
    """The variants of this architecture, the best first, with their compiler flags."""
    return X86_64 if platform.machine().lower() in ("x86_64", "amd64") else OTHERS


def library_path(variant: str) -> Path:
    digest = hashlib.sha256(f"{FLAGS} {variants()[variant]}".encode())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    return FOLDER / f"{variant}-{digest.hexdigest()[:16]}.so"


@cache
def supported() -> list[str]:
    """The built variants that this processor runs, the best first; empty without a build."""
    if not library_path("baseline").exists():
        return []
    try:
        knows = load("baseline").slm_supports
    except OSError as error:
        log.error("the native kernels cannot be loaded: %s", error)
        return []
    return [v for v in variants() if library_path(v).exists() and knows(v.encode())]


@cache
def load(variant: str) -> ctypes.CDLL:
    """The library of a variant. Raises OSError where it is not built."""
    library = ctypes.CDLL(str(library_path(variant)))
    library.slm_supports.argtypes = [ctypes.c_char_p]
    library.slm_create.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
    ]
    library.slm_create.restype = ctypes.c_void_p
    library.slm_forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.slm_destroy.argtypes = [ctypes.c_void_p]
    library.slm_destroy.restype = None
    return library
