from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pgb_lightning.datamodules.sampling import calibration_rows


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=200), data=st.data())
def test_every_class_has_its_share_in_every_prefix(labels: list[int], data: st.DataObject) -> None:
    count = len(labels)
    size = data.draw(st.integers(1, count))
    seed = data.draw(st.integers(0, 9))
    classes = np.array(labels)
    rows = calibration_rows(classes, count, size, seed)
    assert len(set(rows.tolist())) == size
    assert rows.min() >= 0
    assert rows.max() < count
    np.testing.assert_array_equal(rows, calibration_rows(classes, count, count, seed)[:size])
    # Every class is cut at the same quantile, so a class is off by half a row, and so is each of the others.
    for label in set(labels):
        share = (classes == label).mean() * size
        assert abs((classes[rows] == label).sum() - share) <= len(set(labels)) / 2 + 1e-9


def test_an_even_share_is_exact() -> None:
    classes = np.repeat([0, 1, 2], [600, 300, 100])
    rows = calibration_rows(classes, 1000, 100, seed=3)
    assert np.bincount(classes[rows]).tolist() == [60, 30, 10]


def test_rows_within_a_class_are_drawn_from_all_of_it() -> None:
    rows = calibration_rows(np.repeat([0, 1], 500), 1000, 100, seed=0)
    zeros = np.sort(rows[rows < 500])
    assert zeros[0] < 100
    assert zeros[-1] > 400


def test_the_seed_decides() -> None:
    classes = np.tile([0, 1], 50)
    np.testing.assert_array_equal(calibration_rows(classes, 100, 20, 1), calibration_rows(classes, 100, 20, 1))
    assert set(calibration_rows(classes, 100, 20, 1)) != set(calibration_rows(classes, 100, 20, 2))


def test_scores_are_drawn_at_random() -> None:
    rows = calibration_rows(None, 100, 30, seed=0)
    assert len(set(rows.tolist())) == 30
    assert rows.max() < 100
    assert rows.tolist() != sorted(rows.tolist())
