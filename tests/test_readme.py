"""What the README says is so: its settings table, its curl, its Python, its links."""

from __future__ import annotations

import re
from pathlib import Path

from slm_jobs.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def settings_table() -> str:
    """The README's table, as the settings class has it."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, Path):
            default = default.relative_to(ROOT)
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        shown = "" if default is None else f"`{default}`"
        rows.append(f"| `SLM_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_table_is_that_of_the_class() -> None:
    assert settings_table() in README, f"README.md needs this table:\n{settings_table()}"


def test_links_to_files_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets
