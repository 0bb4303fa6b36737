"""A model's flood leaves room for others, and no work is overlooked where a ticket found none."""

from __future__ import annotations

from worker.places import Places


def test_each_model_has_its_own() -> None:
    places = Places(["a", "b"], each=2)
    assert [places.take("a") for _ in range(3)] == [True, True, False]
    assert places.take("b")
    assert not places.take("unknown")


def test_who_leaves_hears_that_somebody_was_turned_away() -> None:
    places = Places(["a", "b"], each=1)
    assert places.take("a")
    assert not places.leave("a")
    assert places.take("a")
    assert not places.take("a")
    assert places.take("b")
    assert not places.leave("b")
    assert places.leave("a")
    assert places.take("a")
    assert not places.leave("a")  # told once
