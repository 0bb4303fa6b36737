"""`python -m worker.tryout`: loads each model as a worker here would, and has it go on with a text.

Prints two lines of JSON for each: that it is `trying` it, and what came of it, or the `fault`. The
exit code is 0 if all were tried, with whatever outcome. Needs no Redis.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from slm_core import SamplingParams
from slm_jobs.errors import ManifestError, SettingsError, UnknownModel
from slm_jobs.manifest import Manifest, ModelSpec
from slm_jobs.settings import Settings
from worker.engines import load_engine

_PROMPT = "Once"
_PARAMS = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)


def try_out(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """Never raises: whatever a model's files do is told."""
    found: dict[str, Any] = {"model": spec.name, "checkpoint": str(spec.checkpoint)}
    began = time.monotonic()
    try:
        engine = load_engine(spec, settings)
        [completion] = engine.generate([_PROMPT], _PARAMS)
    except Exception as error:
        return {**found, "fault": str(error) or type(error).__name__}
    return {
        **found,
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "fingerprint": engine.fingerprint,
        "seconds": round(time.monotonic() - began, 3),
    }


def main() -> None:
    argparse.ArgumentParser("python -m worker.tryout", description=__doc__).parse_args()
    try:
        settings = Settings.from_environment()
        manifest = Manifest.load(*settings.models_files)
        if settings.worker_models:
            manifest = manifest.only(settings.worker_models)
    except (SettingsError, ManifestError, UnknownModel) as error:
        sys.exit(f"tryout: {error}")
    for spec in manifest.models.values():
        _tell({"trying": spec.name})
        _tell(try_out(spec, settings))


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
