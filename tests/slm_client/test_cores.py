from __future__ import annotations

import os
from pathlib import Path

import pytest

from slm_client.cores import cores


@pytest.mark.parametrize(
    ("granted", "count"),
    [
        ("max 100000", 64),
        ("200000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 64),
        ("250000 100000", 2),
        ("nonsense", 64),
    ],
)
def test_a_container_has_what_it_is_granted(
    granted: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text(f"{granted}\n")
    assert cores(tmp_path / "cpu.max") == count
    assert cores(tmp_path / "none") == 64
