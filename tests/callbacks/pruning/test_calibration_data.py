"""The batches on which a fit is calibrated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)
from transformers import BatchEncoding

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.callbacks.pruning.calibration_data import shard_batches
from pgb_lightning.config import CALIBRATION_SIZE


@pytest.mark.parametrize("count", [0, 2, 3, 4, 6, 7])
def test_ranks_get_shards_of_equal_length(count: int) -> None:
    shards = [list(shard_batches(range(count), rank, 3)) for rank in range(3)]
    assert len({len(shard) for shard in shards}) == 1
    batches = {batch for shard in shards for batch in shard}
    assert batches == set(range(count - count % 3 if count >= 3 else count))


#: Calibration batches of the newest ``Seen``: a global variable, which calibration does not put back.
SHOWN: list[Any] = []


class Seen(OwnModule):
    """Record the calibration rows."""

    def __init__(self) -> None:
        super().__init__()
        SHOWN.clear()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if not self.training:
            SHOWN.append(batch)
        return super().training_step(batch, batch_idx)

    @property
    def rows(self) -> Tensor:
        return torch.cat([tokens for tokens, _ in SHOWN])


class Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return make_loader(40, shuffle=True)


class CalibrationData(Data):
    def calibration_dataloader(self) -> DataLoader[Any]:
        return DataLoader(make_rows(24, seed=7), batch_size=8)  # type: ignore[arg-type]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self):
        yield from make_rows(40)


def stacked(rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([tokens for tokens, _ in rows])


def same_rows(left: Tensor, right: Tensor) -> bool:
    return sorted(left.tolist()) == sorted(right.tolist())


def test_a_calibration_dataloader_is_used_completely(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback()).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(24, seed=7)))


def test_its_first_samples_are_used_if_fewer_are_requested(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback(calibration_size=16)).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(24, seed=7)[:16]))


def test_a_loader_can_be_named(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    module.held_out = lambda: make_loader(8)  # type: ignore[assignment]
    trainer(PGBCallback(calibration="held_out")).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(8)))


@pytest.mark.parametrize("name", ["val_dataloader", "train_dataloader"])
def test_a_loader_that_was_passed_to_fit_can_be_named(trainer: Callable[..., L.Trainer], name: str) -> None:
    module = Seen()
    trainer(PGBCallback(calibration=name)).fit(module, make_loader(16), DataLoader(make_rows(8, seed=7), batch_size=8))  # type: ignore[arg-type]
    rows = make_rows(8, seed=7) if name == "val_dataloader" else make_rows(16)
    assert torch.equal(module.rows, stacked(rows))


@pytest.mark.parametrize("name", ["val_dataloader", "train_dataloader"])
def test_an_iterator_that_was_passed_to_fit_is_refused(trainer: Callable[..., L.Trainer], name: str) -> None:
    module = Seen()
    loaders = [
        iter(make_loader(8)) if kind == name else make_loader(8) for kind in ("train_dataloader", "val_dataloader")
    ]
    with pytest.raises(MisconfigurationException, match=f"calibration={name!r}.*iterator"):
        trainer(PGBCallback(calibration=name)).fit(module, *loaders)
    assert SHOWN == []


def test_the_data_module_of_a_previous_fit_is_not_used(trainer: Callable[..., L.Trainer]) -> None:
    fit = trainer()
    fit.fit(OwnModule(), datamodule=CalibrationData())
    assert fit.fit_loop.max_epochs is not None
    fit.fit_loop.max_epochs += 1
    fit.callbacks.append(PGBCallback())  # type: ignore[attr-defined]
    module = Seen()
    fit.fit(module, make_loader(16))
    assert same_rows(module.rows, stacked(make_rows(16)))


def test_a_loader_that_was_not_passed_to_fit_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(MisconfigurationException, match=r"calibration='val_dataloader'.*OwnModule.*passed to fit"):
        trainer(PGBCallback(calibration="val_dataloader")).fit(OwnModule(), make_loader(8))


@pytest.mark.parametrize("passed", ["loader", "datamodule"])
def test_training_rows_are_drawn_by_default_and_few_rows_are_a_warning(
    trainer: Callable[..., L.Trainer], passed: str
) -> None:
    module = Seen()
    data: dict[str, Any] = (
        {"datamodule": Data()} if passed == "datamodule" else {"train_dataloaders": make_loader(40, shuffle=True)}
    )
    with pytest.warns(UserWarning, match=rf"\b40\b.*\b{CALIBRATION_SIZE}\b"):
        trainer(PGBCallback()).fit(module, **data)
    assert same_rows(module.rows, stacked(make_rows(40)))
    assert not torch.equal(module.rows, stacked(make_rows(40)))  # in random order: data sets are often sorted


def test_the_draw_has_the_requested_size_and_is_reproducible(trainer: Callable[..., L.Trainer]) -> None:
    drawn = []
    for _ in range(2):
        module = Seen()
        trainer(PGBCallback(calibration_size=12)).fit(module, make_loader(40, shuffle=True, drop_last=True))
        drawn.append(module.rows)
    assert len(drawn[0]) == 12
    assert torch.equal(*drawn)
    assert [len(tokens) for tokens, _ in SHOWN] == [8, 4]


def test_the_first_samples_of_a_stream_are_used(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    loader = DataLoader(Stream(), batch_size=8)
    trainer(PGBCallback(calibration_size=20)).fit(module, loader)
    assert torch.equal(module.rows, stacked(make_rows(24)))  # complete batches, until there are enough samples


def test_combined_loaders_give_the_batches_of_training(trainer: Callable[..., L.Trainer]) -> None:
    class Pair(Seen):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
            return super().training_step(batch["a"], batch_idx)

    module = Pair()
    trainer(PGBCallback(calibration_size=48)).fit(module, {"a": make_loader(40), "b": make_loader(16)})
    assert len(module.rows) == 24  # and 24 samples of the other loader
    assert {*map(tuple, module.rows.tolist())} < {*map(tuple, stacked(make_rows(40)).tolist())}


def test_a_list_of_batches_is_a_loader(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    module.calibration_dataloader = lambda: list(make_loader(24))  # type: ignore[assignment]
    trainer(PGBCallback(calibration_size=16)).fit(module, make_loader())
    assert torch.equal(module.rows, stacked(make_rows(24)[:16]))


def test_rows_that_a_sampler_leaves_out_are_not_used(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    fold = DataLoader(make_rows(40), batch_size=8, sampler=SubsetRandomSampler(range(16)))  # type: ignore[arg-type]
    trainer(PGBCallback()).fit(module, fold)
    assert same_rows(module.rows, stacked(make_rows(40)[:16]))


def test_an_iterator_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(MisconfigurationException, match="iterator"):
        trainer(PGBCallback()).fit(OwnModule(), iter(make_loader()))


def test_a_calibration_loader_that_is_none_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    module = OwnModule()
    module.held_out = lambda: None  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match=r"OwnModule\.held_out.*None"):
        trainer(PGBCallback(calibration="held_out")).fit(module, make_loader())


def test_fast_dev_run_limits_the_calibration_batches(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback(), fast_dev_run=2).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(16, seed=7)))


def test_more_samples_than_available_are_refused_before_calibration(trainer: Callable[..., L.Trainer]) -> None:
    for data in ({"datamodule": CalibrationData()}, {"train_dataloaders": make_loader(24)}):
        module = Seen()
        with pytest.raises(MisconfigurationException, match=r"calibration_size=25.*\b24\b"):
            trainer(PGBCallback(calibration_size=25)).fit(module, **data)  # type: ignore[arg-type]
        assert SHOWN == []
    module = Seen()
    with pytest.raises(MisconfigurationException, match=r"calibration_size=41.*\b40\b"):
        trainer(PGBCallback(calibration_size=41)).fit(module, DataLoader(Stream(), batch_size=8))


def test_an_empty_loader_and_an_unknown_name_are_refused(trainer: Callable[..., L.Trainer]) -> None:
    class Empty(Data):
        def calibration_dataloader(self) -> list[Any]:
            return []

    with pytest.raises(MisconfigurationException, match="calibration loader"):
        trainer(PGBCallback()).fit(OwnModule(), datamodule=Empty())
    with pytest.raises(MisconfigurationException, match=r"calibration='held_out'.*Data and OwnModule"):
        trainer(PGBCallback(calibration="held_out")).fit(OwnModule(), datamodule=Data())


@pytest.mark.parametrize("how", ["split", "sampler's generator", "loader's generator"])
def test_training_sees_the_batches_that_it_would_see_without_pruning(
    how: str, trainer: Callable[..., L.Trainer]
) -> None:
    class BatchRecorder(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Identity()
            self.rows.seen = []  # type: ignore[assignment]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.rows.seen.append(batch[0].sum(1).tolist())  # type: ignore[operator, union-attr]

    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        if how == "split":
            rows: Any = random_split(make_rows(), [24, 24])[0]
            return DataLoader(rows, batch_size=8, shuffle=True)
        if how == "loader's generator":
            return make_loader(24, shuffle=True, generator=generator)
        return make_loader(48, sampler=WeightedRandomSampler(torch.ones(48), 24, generator=generator))

    def order(*callbacks: L.Callback) -> list[Any]:
        L.seed_everything(2)
        module = BatchRecorder()
        trainer(*callbacks, max_epochs=1 if how == "split" else 2).fit(module, loader())
        return list(module.rows.seen)  # type: ignore[arg-type]

    expected = order()
    assert order(PGBCallback()) == expected
    assert len(expected) == (3 if how == "split" else 6)


def test_a_data_set_that_can_be_read_only_once_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = iter(make_rows())

        def __iter__(self) -> Any:
            return self.rows

    with pytest.raises(MisconfigurationException, match="iterator"):
        trainer(PGBCallback()).fit(OwnModule(), DataLoader(Once(), batch_size=8))


class Sharded(IterableDataset):  # type: ignore[type-arg]
    """Each worker process reads its shard; outside worker processes there is none."""

    def __iter__(self) -> Iterator[Any]:
        worker: Any = get_worker_info()
        return iter(make_rows(40)[worker.id :: worker.num_workers])


def test_a_stream_may_be_readable_in_worker_processes_only(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback()).fit(module, DataLoader(Sharded(), batch_size=4, num_workers=2))
    assert same_rows(module.rows, stacked(make_rows(40)))


class GeneratedData(Data):
    def calibration_dataloader(self) -> Iterator[Any]:
        yield from make_loader(24)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test_rows)  # set in setup("test")


def test_a_method_may_return_a_generator(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(PGBCallback()).fit(module, datamodule=GeneratedData())
    assert not [warning for warning in caught if "PGB" in str(warning.message)]
    assert torch.equal(module.rows, stacked(make_rows(24)))


def test_a_method_that_fails_is_named(trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(MisconfigurationException, match=r"GeneratedData\.test_dataloader\(\).*test_rows.*calibration="):
        trainer(PGBCallback(calibration="test_dataloader")).fit(Seen(), datamodule=GeneratedData())


class Pair(NamedTuple):
    """A batch of a type of the user's own."""

    input_ids: Tensor
    labels: Tensor


@dataclass
class Record:
    """Another one."""

    input_ids: Tensor
    labels: Tensor


@pytest.mark.parametrize("kind", [Pair, Record, lambda **tensors: BatchEncoding(tensors)])
def test_steps_may_change_batches_of_any_type_in_place(
    kind: Callable[..., Any], trainer: Callable[..., L.Trainer]
) -> None:
    class InPlace(OwnModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batch.input_ids[:, 0] = 3
            return self.loss((batch.input_ids, batch.labels))

    tokens, labels = next(iter(make_loader()))
    rows = [kind(input_ids=tokens.clone(), labels=labels) for _ in range(1001)]  # a snapshot searches up to 1,000
    fit = trainer(PGBCallback(calibration_size=16), max_epochs=0)
    fit.fit(InPlace(), DataLoader(rows, batch_size=None))  # type: ignore[arg-type]
    assert all(torch.equal(row.input_ids, tokens) for row in rows)
