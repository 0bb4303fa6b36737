"""The other folders of ours, which we run and never import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # where they are
PACKAGED_MODELS = ROOT / "slm_jobs" / "models.toml"


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of their modules; its working directory must be ROOT, so that `-m`
    finds ours and not the caller's."""
    return [sys.executable, "-m", name, *arguments]


def run(
    command: list[str],
    *,
    env: Mapping[str, str] | None = None,
    capture: bool = False,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a `module` to its end. `env` is added to ours. Raises TimeoutExpired after `timeout`
    seconds."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=capture,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
