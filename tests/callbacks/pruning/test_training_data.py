"""Calibration reads no row that training would not read, in the batches of training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.fakes import quiet_trainer
from helpers.own import OwnModule, make_rows
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.callbacks.pruning.training_data import TrainingData

ROWS = make_rows(48)
NUMBERS = {tuple(tokens.tolist()): number for number, (tokens, _) in enumerate(ROWS)}
#: Numbers of the rows of each batch of calibration and of training. A global variable is not put back.
READ: dict[str, list[Any]] = {"calibration": [], "training": []}


class Recorder(OwnModule):
    """Record the rows of each batch; of a combined batch, those of all its members."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        members = batch.values() if isinstance(batch, dict) else [batch]
        rows = [[NUMBERS[tuple(row)] for row in part[0].tolist()] if part else None for part in members]
        READ["training" if self.training else "calibration"].append(rows if isinstance(batch, dict) else rows[0])
        return sum(self.loss(part) for part in members if part)


def read(trainer: L.Trainer, data: Any) -> tuple[list[Any], list[Any]]:
    """Fit, and return the batches that calibration and training have read."""
    READ["calibration"], READ["training"] = [], []
    torch.manual_seed(0)
    trainer.fit(Recorder(), data)
    return READ["calibration"], READ["training"]


def flat(batches: list[Any]) -> set[int]:
    return {row for batch in batches for row in batch}


def loader(rows: Any = ROWS, **settings: Any) -> DataLoader[Any]:
    return DataLoader(rows, **({} if "batch_sampler" in settings else {"batch_size": 4}) | settings)


class Identity(Sampler[int]):
    """Compose batches of one class each, as samplers for metric learning do."""

    def __init__(self, endless: bool = False) -> None:
        self.endless, self.epochs, self.generator = endless, 0, torch.Generator()

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        self.epochs += 1
        while True:
            for label in (0, 1):
                rows = [number for number in range(32) if ROWS[number][1] == label]
                order = torch.randperm(len(rows), generator=self.generator).tolist()
                yield [rows[index] for index in order[:4]]
            if not self.endless:
                return


class SizedIdentity(Identity):
    def __len__(self) -> int:
        return 2


class Even(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(0, 48, 2))

    def __len__(self) -> int:
        return 24


class Fold(RandomSampler):
    """A subclass may do anything."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


class Keyed(Dataset[Any]):
    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        return ROWS[key[1] if isinstance(key, tuple) else int(key)]


class Batches(Dataset[Any]):
    """Whole batches as rows."""

    def __getitem__(self, number: int) -> list[Tensor]:
        tokens, labels = zip(*ROWS[4 * number : 4 * number + 4], strict=True)
        return [torch.stack(tokens), torch.stack(labels)]

    def __len__(self) -> int:
        return 6


class Doubled(DataLoader[Any]):
    """A loader that reads something other than its sampler says."""

    def __iter__(self) -> Any:
        return iter(loader(ROWS[8:16]))


LOADERS: dict[str, tuple[Callable[[], Any], Iterable[int]]] = {
    "held-out fold": (lambda: loader(sampler=RandomSampler(range(8))), range(8)),
    "sequential fold": (lambda: loader(sampler=SequentialSampler(range(8))), range(8)),
    "subset": (lambda: loader(Subset(ROWS, range(8)), shuffle=True), range(8)),
    "subclass of a sampler": (lambda: loader(sampler=Fold(ROWS)), range(8)),
    "custom sampler": (lambda: loader(sampler=Even()), range(0, 48, 2)),
    "weighted": (lambda: loader(sampler=WeightedRandomSampler([1] * 8 + [0] * 40, 8, replacement=False)), range(8)),
    "iterable as sampler": (lambda: loader(sampler=[3, 5, 7, 9]), (3, 5, 7, 9)),
    "list of batches": (lambda: loader(batch_sampler=[[1, 2], [3]]), (1, 2, 3)),
    "tuples as batches": (lambda: loader(batch_sampler=[(1, 2), (3,)]), (1, 2, 3)),
    "batch sampler of a fold": (lambda: loader(batch_sampler=BatchSampler(range(9), 4, True)), range(8)),
    "string keys": (lambda: loader(Keyed(), sampler=["1", "2", "3"]), (1, 2, 3)),
    "tuple keys": (lambda: loader(Keyed(), batch_sampler=[[("a", 1), ("b", 2)], [("a", 3)]]), (1, 2, 3)),
    "batches as rows": (lambda: loader(Batches(), batch_size=None, sampler=[0, 2]), (0, 1, 2, 3, 8, 9, 10, 11)),
    "dropped rows": (lambda: loader(ROWS[:10], drop_last=True), range(8)),
    "another process's shard": (lambda: loader(sampler=DistributedSampler(ROWS, 2, 1, shuffle=False)), range(1, 48, 2)),
    "own iteration": (lambda: Doubled(ROWS), range(8, 16)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_only_rows_of_training_are_read(name: str, trainer: Callable[..., L.Trainer]) -> None:
    make, expected = LOADERS[name]
    calibration, training = read(trainer(PGBCallback()), make())
    assert flat(calibration) == set(expected)
    assert flat(training) <= set(expected)


def test_a_limit_below_one_batch_leaves_no_rows() -> None:
    loaders = {"first": loader(drop_last=True), "second": loader()}
    assert list(TrainingData(quiet_trainer(limit_train_batches=0.01), loaders, 8)) == []


def test_whole_batches_of_the_batch_sampler_are_read_in_random_order(trainer: Callable[..., L.Trainer]) -> None:
    composed = [[number, number + 24] for number in range(24)]
    calibration, training = read(trainer(PGBCallback(calibration_size=20)), loader(batch_sampler=composed))
    assert training == composed
    assert len(calibration) == 10
    assert all(batch in composed for batch in calibration)
    assert calibration != composed[:10]


@pytest.mark.parametrize("kind", [Identity, SizedIdentity])
def test_listing_an_epoch_leaves_no_trace_in_the_sampler(kind: Any, trainer: Callable[..., L.Trainer]) -> None:
    samplers = [kind(), kind()]
    trained = [
        read(trainer(*callbacks), loader(batch_sampler=sampler))[1]
        for sampler, callbacks in zip(samplers, [[], [PGBCallback()]], strict=True)
    ]
    assert trained[0] == trained[1]
    assert samplers[0].epochs == samplers[1].epochs


def test_the_first_batches_of_an_endless_sampler_are_read(trainer: Callable[..., L.Trainer]) -> None:
    settings = {"max_steps": 2, "limit_train_batches": 8}
    calibration, _ = read(trainer(PGBCallback(calibration_size=12), **settings), loader(batch_sampler=Identity(True)))
    assert [len(batch) for batch in calibration] == [4, 4, 4]
    assert all(len({int(ROWS[number][1]) for number in batch}) == 1 for batch in calibration)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"limit_train_batches": 2}, 8),
        ({"limit_train_batches": 0.25}, 12),
        ({"limit_train_batches": 1.0}, 48),
        ({"overfit_batches": 2}, 8),
        ({"fast_dev_run": 2}, 8),
    ],
)
def test_rows_beyond_the_limit_are_not_read(
    settings: dict[str, Any], expected: int, trainer: Callable[..., L.Trainer]
) -> None:
    for data in (loader(), loader(batch_sampler=[list(range(n, n + 4)) for n in range(0, 48, 4)])):
        assert flat(read(trainer(PGBCallback(), **settings), data)[0]) == set(range(expected))


def test_overfitting_reads_a_shuffled_loader_in_order(trainer: Callable[..., L.Trainer]) -> None:
    calibration, training = read(trainer(PGBCallback(), overfit_batches=2), loader(shuffle=True))
    assert flat(calibration) == flat(training) == set(range(8))


def test_a_shuffled_loader_is_not_limited(trainer: Callable[..., L.Trainer]) -> None:
    assert flat(read(trainer(PGBCallback(), limit_train_batches=2), loader(shuffle=True))[0]) == set(range(48))


def test_more_samples_than_a_sampler_has_are_refused(trainer: Callable[..., L.Trainer]) -> None:
    for data in (loader(sampler=[1, 2, 3]), loader(batch_sampler=[[1], [2, 3]]), loader(ROWS[:5], drop_last=True)):
        with pytest.raises(MisconfigurationException, match=r"calibration_size=20"):
            read(trainer(PGBCallback(calibration_size=20)), data)
        assert READ["calibration"] == []


# ---- collections of loaders ---------------------------------------------------------------------------------


def pair() -> dict[str, Any]:
    return {"a": loader(ROWS[:24]), "b": loader(ROWS[24:32], shuffle=True)}


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_loaders_are_combined_as_in_training(mode: Any, trainer: Callable[..., L.Trainer]) -> None:
    combined = CombinedLoader(pair(), mode)
    members = combined.flattened
    calibration, training = read(trainer(PGBCallback()), combined)
    assert len(calibration) == len(training) == (2 if mode == "min_size" else 6)
    for steps in (calibration, training):
        assert {type(b) for _, b in steps} == ({list, type(None)} if mode == "max_size" else {list})
    assert flat([a for a, _ in calibration]) == set(range(24)) if mode != "min_size" else set(range(8))
    assert flat([b for _, b in calibration if b]) == set(range(24, 32))
    assert combined.flattened == members


def test_a_combined_loader_that_training_refuses_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(MisconfigurationException, match="sequential"):
        read(trainer(PGBCallback()), CombinedLoader(pair(), "sequential"))


def test_a_combined_batch_counts_the_samples_of_all_members(trainer: Callable[..., L.Trainer]) -> None:
    assert len(read(trainer(PGBCallback(calibration_size=24)), pair())[0]) == 3


@pytest.mark.parametrize("kind", ["list", "tuple", "nested"])
def test_lists_and_nests_of_loaders(kind: str, trainer: Callable[..., L.Trainer]) -> None:
    class Nested(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            first, second = batch["both"] if kind == "nested" else batch
            return super().training_step({"a": first, "b": second}, batch_idx)

    both = [*pair().values()]
    data = {"nested": {"both": both}, "list": both, "tuple": tuple(both)}[kind]
    READ["calibration"] = []
    trainer(PGBCallback()).fit(Nested(), data)
    assert flat([a for a, _ in READ["calibration"]]) == set(range(24))


# ---- streams ------------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ROWS


class Continuing(IterableDataset[Any]):
    """Go on where the last epoch has stopped, and draw random numbers."""

    def __init__(self) -> None:
        self.next, self.random = 0, random.Random(1)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(24):
            yield ROWS[self.next % 48]
            self.next += self.random.choice([1, 2])


class OwnIterator(IterableDataset[Any]):
    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.next == len(ROWS):
            raise StopIteration
        self.next += 1
        return ROWS[self.next - 1]


class Lines(IterableDataset[Any]):
    def __init__(self, path: Path) -> None:
        self.file = path.open()

    def __iter__(self) -> Iterator[Any]:
        return (ROWS[int(line)] for line in self.file)


@pytest.mark.parametrize("kind", ["stream", "continuing", "own iterator", "file", "plain iterable"])
def test_training_reads_a_stream_from_where_it_would(
    kind: str, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    (tmp_path / "rows").write_text("\n".join(map(str, range(48))))

    class Plain:
        def __iter__(self) -> Iterator[Any]:
            return iter(loader())

    def data() -> Any:
        kinds = {"stream": Stream, "continuing": Continuing, "own iterator": OwnIterator}
        if kind == "plain iterable":
            return Plain()
        return loader(Lines(tmp_path / "rows") if kind == "file" else kinds[kind]())

    expected = read(trainer(), data())[1]
    calibration, training = read(trainer(PGBCallback(calibration_size=16)), data())
    assert training == expected
    assert calibration == expected[:4]


def test_a_limit_holds_for_streams(trainer: Callable[..., L.Trainer]) -> None:
    assert flat(read(trainer(PGBCallback(), limit_train_batches=3), loader(Stream()))[0]) == set(range(12))


def generate() -> Iterator[Any]:
    yield from ROWS


ENDING = generate()


class Stored(IterableDataset[Any]):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        yield from self.rows


class GlobalRows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ENDING


@pytest.mark.parametrize("kind", ["generator", "iterator", "pipe of iterators", "global", "loader"])
def test_what_training_could_not_read_again_is_refused(kind: str, trainer: Callable[..., L.Trainer]) -> None:
    rows: Any = {"generator": generate(), "iterator": iter(ROWS), "pipe of iterators": map(tuple, iter(ROWS))}.get(kind)
    data: Any = loader(Stored(rows)) if rows else loader(GlobalRows()) if kind == "global" else iter(loader())
    with pytest.raises(MisconfigurationException, match=r"iterator.*calibration="):
        read(trainer(PGBCallback()), data)
    assert READ["calibration"] == []
    assert rows is None or len(list(rows)) == 48


@pytest.mark.slow
@pytest.mark.parametrize("rows", [ROWS, Stream()], ids=["rows", "stream"])
def test_persistent_workers_are_not_left_behind(rows: Any, trainer: Callable[..., L.Trainer]) -> None:
    data = loader(rows, num_workers=1, persistent_workers=True, batch_size=8)
    found: list[Any] = []

    class Look(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found.append(data._iterator)

    calibration, _ = read(trainer(PGBCallback(calibration_size=16), Look()), data)
    assert flat(calibration)
    assert found == [None]
