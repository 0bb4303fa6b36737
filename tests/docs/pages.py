"""The project's pages as tests see them: their blocks of code, headings, links. Runs nothing.

A comment right before a block says what is special about it:

    <!-- not run: why -->        a test cannot run it; its syntax and its options are checked
    <!-- saved as rows.jsonl --> a file that later blocks use
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
GUIDES = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
GUIDES += ["README.md", "CONTRIBUTING.md", "deploy/space/README.md"]
PAGES = tuple(sorted(GUIDES))  # whose every block is run; as paths from the root
_COMMENT = re.compile(r"<!-- (not run: |saved as )(.+?) -->\s*\Z", re.DOTALL)
_ADDRESS = re.compile(r"(?:href|src|srcset)=\"([^\"\s]+)")


@dataclass(frozen=True)
class Block:
    """A fenced block. `not_run` says why, if it is not; `saved_as` names a file."""

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""
    saved_as: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


@cache
def _tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(read(page))


def blocks(page: str) -> list[Block]:
    """In the page's order."""
    found, before = [], ""
    for token in _tokens(page):
        if token.type == "fence":
            comment = _COMMENT.search(before)
            said = {comment[1]: " ".join(comment[2].split())} if comment else {}
            found.append(
                Block(
                    page,
                    (token.map or [0])[0] + 1,
                    token.info.strip(),
                    token.content,
                    said.get("not run: ", ""),
                    said.get("saved as ", ""),
                )
            )
        before = token.content if token.type == "html_block" else ""
    return found


def section(page: str, title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    found = [heading for heading in _headings(page) if heading[1] == title]
    assert found, f"{page} has no section {title!r}"
    level, _, start = found[0]
    after = (line for depth, _, line in _headings(page) if line > start and depth <= level)
    lines = read(page).splitlines(keepends=True)
    return "".join(lines[start + 1 : next(after, len(lines))])


def headings(page: str) -> list[str]:
    return [title for _, title, _ in _headings(page)]


def _headings(page: str) -> list[tuple[int, str, int]]:
    """Level, text and line of each."""
    return [
        (int(token.tag[1:]), "".join(child.content for child in after.children or ()), token.map[0])
        for token, after in itertools.pairwise(_tokens(page))
        if token.type == "heading_open" and token.map
    ]


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    slugs: list[str] = []
    for heading in headings(page):
        kept = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        slugs.append(f"{kept}-{slugs.count(kept)}" if kept in slugs else kept)
    return set(slugs)


def links(page: str) -> list[str]:
    """Where links and pictures lead."""
    return [target for token in _tokens(page) for target in _targets(token)]


def code_spans(page: str) -> list[str]:
    """What stands in the text as `code`."""
    return [t.content for token in _tokens(page) for t in token.children or () if _is_code(t)]


def _is_code(token: Token) -> bool:
    return token.type == "code_inline"


def _targets(token: Token) -> Iterator[str]:
    for part in (token, *(token.children or ())):
        for name in ("href", "src"):
            if target := part.attrGet(name):
                yield str(target)
        if part.type in ("html_block", "html_inline"):
            yield from _ADDRESS.findall(part.content)
