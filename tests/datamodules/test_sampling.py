"""Calibration rows and batches of similar lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pgb_lightning.datamodules.sampling import LengthGroupedSampler, calibration_rows, shuffle_batches


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=200), data=st.data())
def test_every_prefix_has_the_class_fractions(labels: list[int], data: st.DataObject) -> None:
    count = len(labels)
    size = data.draw(st.integers(1, count))
    seed = data.draw(st.integers(0, 9))
    classes = np.array(labels)
    rows = calibration_rows(classes, count, size, seed)
    assert len(set(rows.tolist())) == size
    assert rows.min() >= 0
    assert rows.max() < count
    np.testing.assert_array_equal(rows, calibration_rows(classes, count, count, seed)[:size])
    # All classes are cut at the same quantile, so the count of each class is off by at most half a row per class.
    for label in set(labels):
        expected = (classes == label).mean() * size
        assert abs((classes[rows] == label).sum() - expected) <= len(set(labels)) / 2 + 1e-9


def test_integer_class_counts_are_exact() -> None:
    classes = np.repeat([0, 1, 2], [600, 300, 100])
    rows = calibration_rows(classes, 1000, 100, seed=3)
    assert np.bincount(classes[rows]).tolist() == [60, 30, 10]


def test_rows_are_drawn_from_the_whole_class() -> None:
    rows = calibration_rows(np.repeat([0, 1], 500), 1000, 100, seed=0)
    zeros = np.sort(rows[rows < 500])
    assert zeros[0] < 100
    assert zeros[-1] > 400


def test_the_seed_determines_the_rows() -> None:
    classes = np.tile([0, 1], 50)
    np.testing.assert_array_equal(calibration_rows(classes, 100, 20, 1), calibration_rows(classes, 100, 20, 1))
    assert set(calibration_rows(classes, 100, 20, 1)) != set(calibration_rows(classes, 100, 20, 2))


def test_rows_without_classes_are_drawn_at_random() -> None:
    rows = calibration_rows(None, 100, 30, seed=0)
    assert len(set(rows.tolist())) == 30
    assert rows.max() < 100
    assert rows.tolist() != sorted(rows.tolist())


def test_batches_are_shuffled_and_an_incomplete_one_stays_last() -> None:
    shuffled = shuffle_batches(np.arange(35), batch_size=8, seed=0)
    assert shuffled[32:].tolist() == [32, 33, 34]
    batches = shuffled[:32].reshape(4, 8)
    assert (np.diff(batches) == 1).all()
    assert sorted(batches[:, 0]) == [0, 8, 16, 24]
    assert batches[:, 0].tolist() != [0, 8, 16, 24]
    np.testing.assert_array_equal(shuffled, shuffle_batches(np.arange(35), batch_size=8, seed=0))


@given(lengths=st.lists(st.integers(1, 60), min_size=3, max_size=300), processes=st.integers(1, 3))
def test_shards_cover_all_rows_and_have_equal_sizes(lengths: list[int], processes: int) -> None:
    shards = [list(LengthGroupedSampler(lengths, 8, processes, rank, seed=0)) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    rows = [row for shard in shards for row in shard]
    assert set(rows) == set(range(len(lengths)))
    assert len(rows) - len(lengths) < processes


def test_two_processes_get_batches_of_similar_lengths_at_the_same_time() -> None:
    lengths = np.random.default_rng(0).integers(4, 60, 3200).tolist()
    first, second = (list(LengthGroupedSampler(lengths, 32, 2, rank, seed=0)) for rank in (0, 1))
    longest = [
        [max(lengths[row] for row in shard[at : at + 32]) for at in range(0, 1600, 32)] for shard in (first, second)
    ]
    assert longest[0] not in (sorted(longest[0]), sorted(longest[0], reverse=True))
    # Only the batch with the longest row may differ.
    assert sum(abs(one - other) > 4 for one, other in zip(*longest, strict=True)) <= 1


def test_epochs_and_seeds_differ() -> None:
    lengths = list(range(1, 101))
    sampler, other = LengthGroupedSampler(lengths, 8, 1, 0, seed=0), LengthGroupedSampler(lengths, 8, 1, 0, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    assert list(other) != first
    sampler.set_epoch(1)
    assert list(sampler) != first
