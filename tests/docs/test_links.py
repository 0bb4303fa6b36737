"""Links lead somewhere, and every page is found from the overview."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links

OVERVIEW = "docs/README.md"


def every_page() -> list[str]:
    """All Markdown of the repository, also what is not in Git yet."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    try:
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return list(PAGES)  # a copy without its history
    return sorted(page for page in done.stdout.split() if (ROOT / page).exists())


def wrong(page: str) -> list[str]:
    """Its links that lead nowhere."""
    found = []
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        if not target.exists():
            found.append(f"{page}: {link}: there is no such file")
        elif anchor and anchor not in anchors(str(target.resolve().relative_to(ROOT))):
            found.append(f"{page}: {link}: there is no such heading")
    return found


def test_links_lead_somewhere() -> None:
    assert [problem for page in every_page() for problem in wrong(page)] == []


def test_a_wrong_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.test_links.ROOT", tmp_path)
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# A `b`, c\n[1](#a-b-c) [2](page.md#a-b-c) [3](#d) [4](gone.md)\n"
        '<img src="none.png"> [5](https://example.com/x#y)'
    )
    assert [problem.split(": ")[1] for problem in wrong("page.md")] == ["#d", "gone.md", "none.png"]


def test_the_overview_leads_to_every_page() -> None:
    folder = ROOT / "docs"
    linked = {(folder / link.partition("#")[0]).resolve() for link in links(OVERVIEW)}
    pages = [*folder.glob("*.md"), *folder.glob("decisions/*.md")]
    assert sorted(set(pages) - linked - {ROOT / OVERVIEW}) == []


def test_the_readme_leads_to_the_overview_and_to_contributing() -> None:
    assert {"docs/README.md", "CONTRIBUTING.md"} <= set(links("README.md"))
