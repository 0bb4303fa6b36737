"""`python -m slm_core.kernels`: what the engine finds to compute with on this machine, as JSON.

`kernels` has each variant of this architecture, the best first: it `runs` here, is `built` but does
not, or is `missing`.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from slm_core.kernels import library_path, supported, variants


def main() -> None:
    argparse.ArgumentParser("python -m slm_core.kernels", description=__doc__).parse_args()
    runs = supported()
    found = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "openmp": torch.backends.openmp.is_available(),  # type: ignore[no-untyped-call]
        "cuda_build": torch.version.cuda,
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "kernels": {
            variant: "runs"
            if variant in runs
            else ("built" if library_path(variant).exists() else "missing")
            for variant in variants()
        },
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
