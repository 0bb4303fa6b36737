"""python -m tests.docs: which blocks of the pages no test runs, and why."""

from __future__ import annotations

from tests.docs.pages import PAGES, blocks

for page in PAGES:
    found = blocks(page)
    skipped = [block for block in found if block.not_run]
    print(f"{page}: {len(found)} blocks, {len(skipped)} not run")  # noqa: T201
    for block in skipped:
        print(f"  line {block.line}: {block.not_run}")  # noqa: T201
