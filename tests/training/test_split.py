"""Which side documents fall on, and that near copies are found exactly as by comparing all."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import split
from training.duplicates import NEAR, NearIndex, Seen, load_index


def shingles(normalised: str) -> np.ndarray:
    return split.Shingler()(normalised)


def test_case_punctuation_and_spaces_do_not_count() -> None:
    same = ["Don't  go, Café!", "don t GO\n\ncafe\u0301", "“Don,t go: café”"]
    assert {split.normalise(text) for text in same} == {"don t go café"}
    assert split.normalise("Don't goo, Café!") != split.normalise(same[0])
    assert split.normalise(" !?\n!? ") == "!?\n!?"  # else all such texts were the same


def test_the_split_is_about_as_large_as_asked_and_each_seed_has_its_own() -> None:
    digests = [split.digest(f"story {i}") for i in range(20_000)]
    sides = {
        seed: [split.is_validation(d, fraction=0.1, seed=seed) for d in digests] for seed in (1, 2)
    }
    assert 1800 < sum(sides[1]) < 2200
    assert 1800 < sum(sides[2]) < 2200
    assert 100 < sum(a and b for a, b in zip(sides[1], sides[2], strict=True)) < 300
    larger = [split.is_validation(d, fraction=0.2, seed=1) for d in digests]
    assert all(b for a, b in zip(sides[1], larger, strict=True) if a)


def test_digests_and_sides_are_the_same_everywhere() -> None:
    assert split.digest("once upon a time") == 3740024324896832337
    assert shingles("once upon a time").tolist() == [12067069411181589565]
    sides = "".join(str(int(split.is_validation(i, fraction=0.5, seed=7))) for i in range(8))
    assert sides == "10001010"


def test_shingles_are_of_eight_words_in_their_order() -> None:
    words = [f"w{i}" for i in range(20)]
    numbers = shingles(" ".join(words))
    each = {int(shingles(" ".join(words[i : i + 8]))[0]) for i in range(13)}
    assert set(numbers.tolist()) == each
    assert len(each) == 13
    assert (np.diff(numbers) > 0).all()
    assert shingles("a b c d e f g h") != shingles("b a c d e f g h")
    assert len(shingles("a b")) == 1
    assert shingles("a b") != shingles("b a")
    assert len(shingles("very " * 30)) == 1


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=12))
def test_seen_is_a_set(lists: list[list[int]]) -> None:
    seen, twin = Seen(), set[int]()
    for numbers in lists:
        new = seen.add(np.array(numbers, np.uint64))
        expected = []
        for number in numbers:
            expected.append(number not in twin)
            twin.add(number)
        assert new.tolist() == expected


def near_to_one(documents: list[set[int]], asked: set[int]) -> bool:
    """The naive twin of NearIndex."""
    return any(len(d & asked) > NEAR * min(len(d), len(asked)) for d in documents)


def numbers(values: set[int]) -> np.ndarray:
    return np.array(sorted(values), np.uint64)


documents = st.sets(st.integers(0, 15) | st.integers(0, 400), max_size=25)


@settings(deadline=None)
@given(st.lists(documents, max_size=8), st.lists(documents, max_size=8), st.data())
def test_near_copies_are_found_as_by_comparing_with_each(
    ours: list[set[int]], asked: list[set[int]], data: st.DataObject
) -> None:
    index = NearIndex.build([numbers(values) for values in ours])
    for document in ours:  # and some that are close to the border
        part = data.draw(st.integers(0, len(document)))
        asked.append(set(sorted(document)[:part]) | set(range(1000, 1000 + len(document) - part)))
        asked.append(document | set(range(2000, 2000 + data.draw(st.integers(0, 30)))))
    for document in asked:
        assert index.is_near(numbers(document)) == near_to_one(ours, document)


def test_of_long_texts_as_well(tmp_path: Path) -> None:
    rng = random.Random(3)
    common = list(range(50))
    ours = [set(rng.sample(range(10_000), 150)) | set(common) for _ in range(60)]
    index = NearIndex.build([numbers(values) for values in ours])
    index.save(tmp_path)
    loaded = load_index(tmp_path)
    answers = []
    for i, document in enumerate(ours):
        kept = rng.sample(sorted(document), rng.randrange(60, len(document)))
        asked = set(kept) | set(rng.sample(range(10_000), rng.randrange(200)))
        answers.append(near_to_one(ours, asked))
        assert index.is_near(numbers(asked)) == loaded.is_near(numbers(asked)) == answers[i]
    assert 5 < sum(answers) < 55


def test_what_all_have_in_common_is_no_reason_to_compare_all() -> None:
    common = set(range(100))
    ours = [common | set(range(1000 * i, 1000 * i + 200)) for i in range(1, 400)]
    index = NearIndex.build([numbers(values) for values in ours])
    candidates = []
    index._shares = lambda _, document: candidates.append(document) or False  # type: ignore
    assert not index.is_near(numbers(common | set(range(900_000, 900_200))))
    assert candidates == []


@pytest.mark.parametrize("change", ["", " The end.", " And so on, " * 3])
def test_a_story_is_near_to_itself_with_some_more(change: str) -> None:
    story = "One day a red cat sat on a mat and saw a big dog that ran to the old tree by the lake."
    index = NearIndex.build([shingles(split.normalise(story))])
    assert index.is_near(shingles(split.normalise(story.upper() + change)))
    other = "One day a red cat sat on a hat and said that it would rather have a house of its own."
    assert not index.is_near(shingles(split.normalise(other)))
