"""Tables and lists of the pages name all that there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from slm_core.config import PRESETS
from slm_jobs.settings import Settings
from tests.docs.pages import PAGES, ROOT, headings, read, section

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"


def settings_table() -> str:
    """As docs/operating.md has it, from the settings class."""
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
    table = settings_table()
    assert table in read("docs/operating.md"), f"docs/operating.md needs this table:\n{table}"


def test_every_variable_that_a_page_names_is_a_setting() -> None:
    """Or one of the command line's, or of the tests."""
    known = {f"SLM_{name.upper()}" for name in Settings.model_fields}
    known |= {"SLM_URL", "SLM_API_KEY", "SLM_CALLBACK_SECRET", "SLM_HYPOTHESIS"}
    known |= {"SLM_OUTAGE_SECONDS", "SLM_BATCH_ROWS"}
    for page in PAGES:
        found = set(re.findall(r"\bSLM_[A-Z_]+[A-Z]\b(?!\*)", read(page)))
        assert found <= known, f"{page}: {found - known}"


@pytest.mark.skipif(not ALERTS.exists(), reason="there are no alerts")
def test_every_alert_has_its_section_in_the_runbook() -> None:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    runbook = [title for title in headings("docs/operating.md") if re.match(r"Slm[A-Z]", title)]
    assert sorted(runbook) == sorted(alerts)


def test_every_section_of_the_runbook_says_what_to_do() -> None:
    for title in headings("docs/operating.md"):
        if re.match(r"Slm[A-Z]", title):
            parts = re.findall(r"^\*\*(\w+)", section("docs/operating.md", title), re.MULTILINE)
            assert parts == ["Means", "Look", "Causes", "Do", "Over"], title


def test_the_presets_of_training_are_those_there_are() -> None:
    table = read("docs/training.md").partition("| preset |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)) == PRESETS.keys()


def test_the_readme_trains_as_the_training_guide_does() -> None:
    def commands(page: str, text: str) -> set[str]:
        found = re.findall(r"^\.venv/bin/python -m training.*$", text, re.MULTILINE)
        assert found, page
        return set(found)

    readme = section("README.md", "Train your own")
    assert commands("README.md", readme) <= commands("training", read("docs/training.md"))
