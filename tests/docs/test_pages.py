"""Every block of the pages is run, against a service as `slm up` starts it; or says why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_client.redis_server import free_port
from slm_client.stack import Stack, StackOptions
from tests.docs.commands import make_targets, problems, slm_problem
from tests.docs.pages import PAGES, blocks, code_spans
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
