from __future__ import annotations

from pathlib import Path

import pytest

from slm_client.credentials import choose_key, is_here


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "api_key").write_text("slm_ours\n")
    return tmp_path


def test_what_is_given_comes_first(folder: Path, tmp_path: Path) -> None:
    assert choose_key("given", "http://127.0.0.1:8000", folder) == "given"
    assert choose_key(None, "http://127.0.0.1:8000", folder) == "slm_ours"
    assert choose_key("", "http://localhost", folder) == "slm_ours"
    assert choose_key(None, "http://127.0.0.1:8000", folder / "none") is None
    (folder / "api_key").write_text("\n")
    assert choose_key(None, "http://127.0.0.1:8000", folder) is None


def test_our_own_key_goes_to_nobody_else(folder: Path) -> None:
    for url in ("http://192.0.2.1:8000", "http://192.0.2.1.nip.invalid", "nonsense", "http://["):
        assert choose_key(None, url, folder) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.0.0.9"])  # noqa: S104
def test_addresses_of_this_machine(host: str) -> None:
    assert is_here(f"http://{host}:8000")
