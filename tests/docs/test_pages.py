"""Every block of the pages is run, against a service as `slm up` starts it; or says why not."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from slm_client.redis_server import free_port
from slm_client.stack import Stack, StackOptions
from tests.docs.commands import make_targets, problems, slm_problem
from tests.docs.pages import PAGES, ROOT, blocks, code_spans, read
from tests.docs.reader import Reader, checkout

OWN_TEST = {"docs/training.md": "test_training.py"}  # whose commands need less than they say


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service, as `slm up` runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_CALLBACK_SCHEDULE_SECONDS", "0,1,1,1,1")  # receivers start meanwhile
        options = StackOptions(port=free_port(), data_dir=tmp_path_factory.mktemp("data"))
        with Stack(options) as running:
            yield running


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if page not in OWN_TEST])
def test_the_blocks_of_a_page_run(page: str, stack: Stack, tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    (folder / ".slm").symlink_to(stack.plan.options.data_dir)
    redis = int(stack.plan.redis_url.rpartition(":")[2].partition("/")[0])
    with Reader(folder, {8000: stack.plan.options.port, 6379: redis}) as reader:
        reader.read(page)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:runpy")
def test_what_is_not_run_could_be() -> None:
    found = []
    for block in (block for page in PAGES for block in blocks(page) if block.not_run):
        shell = block.text if block.language == "sh" else ""
        if block.language == "ini":  # of systemd
            shell = "\n".join(re.findall(r"^ExecStart=(.*)", block.text, re.MULTILINE))
        found += [f"{block}: {problem}" for problem in problems(shell)]
        assert block.language != "python", f"{block}: code can be run, or saved as a file"
    assert found == []


def test_what_pages_import_is_installed_or_they_say_how() -> None:
    """Their blocks run here with the developers' packages; who has said `make up` has fewer."""
    [extras] = re.findall(
        r"\.runtime:.*\n(?:\t@.*\n)*\t\$\(PIP\) --editable '\.\[(.*)\]'",
        (ROOT / "Makefile").read_text("utf-8"),
    )
    there = brought_by("slm-jobs", frozenset(extras.split(",")))
    assert {"fastapi", "torch", "standardwebhooks"} <= there
    assert not {"openai", "matplotlib"} & there
    for page in PAGES:
        for module in sorted(imported(page)):
            if module in sys.stdlib_module_names or (ROOT / module).is_dir():
                continue
            name = normal(module)  # of its package, too
            told = f"pip install {name}" in read(page)
            assert name in there or told, f"{page} imports {module}, and says not whence it comes"


def imported(page: str) -> set[str]:
    found = set()
    for block in (block for block in blocks(page) if block.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def brought_by(package: str, extras: frozenset[str]) -> set[str]:
    """The package with what it needs, and what that needs."""
    found: set[tuple[str, frozenset[str]]] = set()
    left = [(normal(package), extras)]
    while left:
        if (it := left.pop()) in found:
            continue
        found.add(it)
        for line in _requires(it[0]):
            needed = Requirement(line)
            wanted = [{"extra": extra} for extra in (*it[1], "")]
            if needed.marker is None or any(map(needed.marker.evaluate, wanted)):
                left.append((normal(needed.name), frozenset(needed.extras)))
    return {name for name, _ in found}


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:  # for another platform
        return []


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_commands_that_the_text_names_exist() -> None:
    for page in PAGES:
        for span in code_spans(page):
            program, *words = span.split() or [""]
            if program == "make" and words:
                assert words[0] in make_targets(), f"{page}: {span}"
            if program == "slm" and not any("…" in word or "|" in word for word in words):
                assert slm_problem(words) is None, f"{page}: {span}"


def test_what_is_wrong_is_seen() -> None:
    shell = "slm gone\nslm jobs list --no\nmake none\n(\n"
    assert problems(shell)  # its syntax
    assert len(problems(shell.removesuffix("(\n"))) == 3
    assert problems("X=1 .venv/bin/slm jobs list | jq .  # --x\nslm keys secret show > file") == []
    assert problems(".venv/bin/python -m slm_core.describe --none") != []
