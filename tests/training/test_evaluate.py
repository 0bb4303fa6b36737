"""Losses against loops written out, figures of texts by hand, and the command on small models."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from slm_core import GPT, GPTConfig, Tokenizer, save_checkpoint
from slm_core.checkpoint import read_perplexity, record_perplexity
from tests.slm_core.conftest import random_model
from training import samples
from training.documents import load
from training.evaluate import app
from training.metrics import TextLoss, _windows, distinct, repetition, text_loss
from training.page import Card, Page, Table
from training.tokens import split_documents

EOS = 50256
DOCUMENTS = [[1, 2, 3, EOS], [7, EOS], [4] * 9 + [EOS]]
STORIES = [
    "One day a cat sat on a mat. It was a red mat.",
    "The dog ran. He ran & ran <far> | away.",
]


def tokens_of(documents: list[list[int]]) -> np.ndarray:
    return np.array([token for document in documents for token in document], np.uint16)


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(document, np.uint16) for document in documents]


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=6))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=24)
    return save_checkpoint(random_model(config), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def story_file(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in STORIES), "utf-8")
    return path


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def refusal(*arguments: object) -> str:
    """What the command says when it refuses, without the frame around it."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def losses_at(model: GPT, ids: list[int]) -> list[float]:
    """Loss of each token but the first."""
    logits = model(torch.tensor([ids[:-1]]))[0]
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def test_whole_stories_are_scored_alone_and_cut_to_the_context(model: GPT) -> None:
    expected = [loss for ids in DOCUMENTS for loss in losses_at(model, ids[:7])]
    whole = text_loss(model.logits, split_documents(tokens_of(DOCUMENTS)), context_length=6)
    assert whole.mean == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert (whole.tokens, whole.documents, whole.cut) == (3 + 1 + 6, 3, 1)
    first = text_loss(model.logits, arrays(DOCUMENTS[:1]), context_length=6)
    assert first.mean == pytest.approx(sum(losses_at(model, DOCUMENTS[0])) / 3, rel=1e-5)


def test_a_stride_reads_long_documents_to_their_end(model: GPT) -> None:
    ids = [*np.random.default_rng(0).integers(0, 500, 20).tolist(), EOS]
    expected = losses_at(model, ids[:7])  # then by 4, the last window shorter
    expected += losses_at(model, ids[4:11])[2:] + losses_at(model, ids[8:15])[2:]
    expected += losses_at(model, ids[12:19])[2:] + losses_at(model, ids[16:21])[2:]
    assert len(expected) == 20
    loss = text_loss(model.logits, arrays([ids]), context_length=6, stride=4)
    assert loss.nats == pytest.approx(sum(expected), rel=1e-5)
    assert (loss.tokens, loss.cut) == (20, 0)
    short = text_loss(model.logits, arrays(DOCUMENTS[:2]), context_length=6, stride=1)
    assert short == text_loss(model.logits, arrays(DOCUMENTS[:2]), context_length=6)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_windows_predict_each_token_once_with_enough_before_it(
    last: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    windows = list(_windows(last, context, stride))
    assert windows[0][:2] == (0, 0)
    assert windows[-1][2] == last
    for (_, _, end), (begin, first, _) in pairwise(windows):
        assert first == end
        assert first - begin >= context - stride
    assert all(0 < end - begin <= context and first < end for begin, first, end in windows)


def test_losses_add_up_over_tokens() -> None:
    total = TextLoss(2.0, 1, 1, 0) + TextLoss(4.0, 5, 2, 1)
    assert total == TextLoss(6.0, 6, 3, 1)
    assert total.mean == 1.0
    assert total.perplexity == pytest.approx(2.71828, rel=1e-5)
    assert np.isfinite(TextLoss(1e9, 1, 1).perplexity)


def test_what_cannot_be_measured_is_named(model: GPT) -> None:
    def logits(value: float) -> Any:
        return lambda ids: torch.full((len(ids), EOS + 1), value)

    good_then_bad = iter([logits(0.0), logits(float("nan"))])
    with pytest.raises(ValueError, match="document 2 is not finite"):
        text_loss(lambda ids: next(good_then_bad)(ids), arrays(DOCUMENTS), context_length=6)
    with pytest.raises(ValueError, match="two tokens"):
        text_loss(model.logits, arrays([[EOS], [EOS]]), context_length=6)
    with pytest.raises(ValueError, match="stride must be 1 to the context length 6: 7"):
        text_loss(model.logits, arrays(DOCUMENTS), context_length=6, stride=7)
    small = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=6, vocab_size=10)).eval()
    with pytest.raises(ValueError, match="token id 50256, but the model has 10"):
        text_loss(small.logits, arrays(DOCUMENTS), context_length=6)


def test_repetition_and_diversity_by_hand() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0.0
    assert repetition([[1, 1, 1, 1, 1]]) == 0.5
    assert repetition([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5]], 2) == pytest.approx((3 / 5 + 0) / 2)
    assert repetition([[1, 2, 3]]) == repetition([]) == 0.0
    assert distinct([[1, 2, 1], [1, 2]], 1) == pytest.approx(2 / 5)
    assert distinct([[1, 2, 1], [1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct([[1]], 2) == 0.0


def test_beginnings_fit_their_documents_and_the_context() -> None:
    documents = arrays([[1, EOS], [1, 2, 3, 4, 5, EOS], [*range(40), EOS]])
    begun, ended = samples.beginnings(documents, 9, context_length=16, seed=1)
    assert sorted(map(len, begun)) == [1, 2, 8]
    joined = sorted((b + e for b, e in zip(begun, ended, strict=True)), key=len)
    assert joined == [[1], [1, 2, 3, 4, 5], list(range(40))]
    assert samples.beginnings(documents, 2, context_length=16, seed=1)[0] == begun[:2]
    with pytest.raises(ValueError, match="no document"):
        samples.beginnings(arrays([[EOS]]), 1, context_length=16, seed=1)


def test_only_the_documents_that_are_drawn_become_lists() -> None:
    class Document(list[int]):
        listed = 0

        def __getitem__(self, at: Any) -> Any:
            return Document(super().__getitem__(at)) if isinstance(at, slice) else at

        def tolist(self) -> list[int]:
            Document.listed += 1
            return list(self)

    documents: Any = [Document([1, 2, 3, EOS]) for _ in range(50)]
    assert samples.beginnings(documents, 3, context_length=16, seed=1)[0] == [[1]] * 3
    assert Document.listed == 3


def test_texts_are_read_as_their_token_files_are(story_file: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    expected = [[*tokenizer.encode(story), EOS] for story in STORIES]
    tokens_of(expected).tofile(tmp_path / "val.bin")
    (tmp_path / "stories.txt.gz").write_bytes(gzip.compress(story_file.read_bytes()))
    for name in ("val.bin", "stories.txt", "stories.txt.gz"):
        assert [d.tolist() for d in load(tmp_path / name)] == expected
        assert [d.tolist() for d in load(tmp_path / name, 1)] == expected[:1]


def test_every_precision_is_evaluated_and_recorded(tmp_path: Path) -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=8)
    save_checkpoint(GPT(config), tmp_path / "model")
    tokens_of([[1, 2, 3, EOS], [4, 5, EOS]]).tofile(tmp_path / "val.bin")
    arguments = [tmp_path / "model", tmp_path / "val.bin", "--record"]
    measured = run(*arguments)["perplexity"]
    assert measured["fp32"] == pytest.approx(measured["bf16"], rel=0.05)
    assert read_perplexity(tmp_path / "model") == measured
    assert "no precision 'fp8'" in refusal(*arguments, "--precision", "fp8", "--precision", "fp32")


def test_a_record_is_of_one_text_in_full_and_compares_with_fp32(
    checkpoint: Path, story_file: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    record_perplexity(model, {"fp32": 2.0, "int8": 1.0})
    quick = (model, story_file, "--record", "--samples", 0)
    for limit in (("--documents", 1), ("--stride", 4)):
        assert "--record takes whole texts" in refusal(*quick, *limit)
    assert "--record compares with fp32" in refusal(*quick, "--precision", "bf16")
    assert read_perplexity(model) == {"fp32": 2.0, "int8": 1.0}
    measured = run(*quick, "--precision", "fp32")["perplexity"]
    assert read_perplexity(model) == measured
    assert measured.keys() == {"fp32"}


def test_several_texts_are_told_apart_and_summed_by_token(
    checkpoint: Path, story_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "Hello there."}\n')
    result = run(checkpoint, story_file, other, "--precision", "fp32", "--samples", "0")
    each = [text["fp32"] for text in result["texts"].values()]
    assert list(result["texts"]) == [str(story_file), str(other)]
    total = sum(text["loss"] * text["tokens"] for text in each)
    assert result["loss"]["fp32"] == pytest.approx(total / sum(text["tokens"] for text in each))
    assert result["samples"] == {}
    assert [text["documents"] for text in each] == [2, 1]


def test_only_the_first_documents_and_windows_by_a_stride(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("A cat and a dog and " * 20 + "\n\nAnother one.\n", "utf-8")
    quick = ("--precision", "fp32", "--samples", "0", "--documents", "1")
    [cut] = run(checkpoint, text, *quick)["texts"].values()
    [whole] = run(checkpoint, text, *quick, "--stride", "12")["texts"].values()
    assert (cut["fp32"]["documents"], cut["fp32"]["cut"], cut["fp32"]["tokens"]) == (1, 1, 24)
    assert (whole["fp32"]["cut"], whole["fp32"]["tokens"]) == (0, 120)
    said = refusal(checkpoint, text, *quick, "--stride", "25")
    assert "the stride must be 1 to the context length 24: 25" in said


def test_samples_depend_on_the_seed_only_and_stand_on_a_page(
    checkpoint: Path, story_file: Path, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "samples.md"
    arguments = [checkpoint, story_file, "--precision", "fp32", "--samples", "3"]
    figures = run(*arguments, "--grid", page)["samples"]
    assert figures.keys() == {"samples", "text"}
    assert figures["samples"].keys() == {
        "rep_4",
        "distinct_1",
        "distinct_2",
        "distinct_3",
        "tokens",
    }
    assert run(*arguments)["samples"] == figures
    assert run(*arguments, "--seed", "9")["samples"] != figures
    markdown = page.read_text("utf-8")
    assert "3 samples in the order in which they came, none left out" in markdown
    assert markdown.count("seed ") == 3
    run(*arguments, "--grid", page.with_suffix(".html"))
    html = page.with_suffix(".html").read_text("utf-8")
    assert html.count("<article>") == 3


def test_prompts_come_from_a_file(checkpoint: Path, story_file: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A <b>bold</b> cat\n\nThe dog\n", "utf-8")
    page = tmp_path / "samples.html"
    quick = (checkpoint, story_file, "--precision", "fp32", "--samples", 3, "--prompts", prompts)
    assert run(*quick, "--grid", page)["samples"].keys() == {"samples"}
    html = page.read_text("utf-8")
    assert html.count("<b>A &lt;b&gt;bold&lt;/b&gt; cat</b>") == 2
    assert html.count("<b>The dog</b>") == 1
    prompts.write_text("\n")
    assert "holds no prompt" in refusal(*quick)
    prompts.write_text("cat " * 50)
    assert "context" in refusal(*quick)


@pytest.mark.parametrize("flags", [("--grid", "page.md"), ("--record",)])
def test_a_full_disk_is_told_in_a_line_after_the_figures(
    checkpoint: Path,
    story_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    model = shutil.copytree(checkpoint, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    arguments = [str(model), str(story_file), "--precision", "fp32", "--samples", "1", *flags]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["perplexity"].keys() == {"fp32"}
    assert result.stderr.splitlines()[-1] == "not written: [Errno 28] No space left on device"


def test_a_name_is_no_markup(checkpoint: Path, story_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x[").mkdir()
    odd = story_file.rename(tmp_path / "x[" / "b].txt")
    result = run(checkpoint, odd, "--precision", "fp32", "--samples", 0)
    assert list(result["texts"]) == [str(odd)]


def test_bad_input_is_refused_in_a_line(checkpoint: Path, story_file: Path, tmp_path: Path) -> None:
    assert "must end with .md or .html" in refusal(checkpoint, story_file, "--grid", "page.pdf")
    assert "--samples be 1" in refusal(checkpoint, story_file, "--grid", "a.md", "--samples", 0)
    assert "config.json is missing" in refusal(tmp_path, story_file)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n<|endoftext|>\n\xff\xfe\n")
    assert "line 3: not UTF-8" in refusal(checkpoint, bad)
    damaged = tmp_path / "val.bin"
    damaged.write_bytes(b"\x01\x00\x02")
    assert "is no token file" in refusal(checkpoint, damaged)
    assert "does not exist" in refusal(checkpoint, tmp_path / "nothing.txt")


def test_a_page_shows_texts_as_they_are(tmp_path: Path) -> None:
    card = Card("2 * 3 | x", "\n\n<script>_a_</script>", "seed 1")
    page = Page("T<i>", ["a & b"], [card, card, card], 2, ["l", "r"], [Table(["n"], [["1|2"]])])
    lines = page.markdown().splitlines()
    assert lines[0] == r"# T\<i\>"
    assert r"| 1\|2 |" in lines
    assert lines[-2].count(r"2 \* 3 \| x") == 2
    assert lines[-1].count(r"\<script\>\_a\_\</script\>") == 1
    assert "<script>" not in page.html()
    assert page.html().count("<article>") == 3
