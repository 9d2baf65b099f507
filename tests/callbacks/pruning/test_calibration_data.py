"""Which batches a fit is calibrated on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader, make_rows
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, WeightedRandomSampler, random_split

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.callbacks.pruning.calibration_data import share_of_rank
from pgb_lightning.config import CALIBRATION_SIZE


@pytest.mark.parametrize("count", range(8))
def test_ranks_take_the_same_number_of_different_batches(count: int) -> None:
    shares = [list(share_of_rank(range(count), rank, 3)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1 or count < 3
    dealt = [batch for share in shares for batch in share]
    assert sorted(dealt) == list(range(count - count % 3 if count >= 3 else count))


class Seen(OwnModule):
    """Keep the rows that calibration showed."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: Any = torch.nn.Identity()  # no plain attribute, so that it is not put back
        self.shown.batches = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if not self.training:
            self.shown.batches.append(batch)
        return super().training_step(batch, batch_idx)

    @property
    def rows(self) -> Tensor:
        return torch.cat([tokens for tokens, _ in self.shown.batches])


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


def test_a_calibration_dataloader_is_used_whole(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback()).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(24, seed=7)))


def test_its_first_samples_are_used_where_fewer_are_asked_for(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback(calibration_size=16)).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(24, seed=7)[:16]))


def test_a_loader_may_be_named(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    module.held_out = lambda: make_loader(8)  # type: ignore[assignment]
    trainer(PGBCallback(calibration="held_out")).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(8)))


@pytest.mark.parametrize("passed", ["loader", "datamodule"])
def test_else_training_rows_are_drawn_and_a_small_set_is_mentioned(
    trainer: Callable[..., L.Trainer], passed: str
) -> None:
    module = Seen()
    data: dict[str, Any] = (
        {"datamodule": Data()} if passed == "datamodule" else {"train_dataloaders": make_loader(40, shuffle=True)}
    )
    with pytest.warns(UserWarning, match=f"calibrates on all 40 training samples; {CALIBRATION_SIZE} are usual"):
        trainer(PGBCallback()).fit(module, **data)
    assert same_rows(module.rows, stacked(make_rows(40)))
    assert not torch.equal(module.rows, stacked(make_rows(40)))  # in random order: data sets are often sorted


def test_the_draw_is_of_the_size_asked_for_and_the_same_every_time(trainer: Callable[..., L.Trainer]) -> None:
    drawn = []
    for _ in range(2):
        module = Seen()
        trainer(PGBCallback(calibration_size=12)).fit(module, make_loader(40, shuffle=True, drop_last=True))
        drawn.append(module.rows)
    assert len(drawn[0]) == 12
    assert torch.equal(*drawn)
    assert [len(tokens) for tokens, _ in module.shown.batches] == [8, 4]


def test_a_stream_gives_its_first_samples(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    loader = DataLoader(Stream(), batch_size=8)
    trainer(PGBCallback(calibration_size=20)).fit(module, loader)
    assert torch.equal(module.rows, stacked(make_rows(24)))  # whole batches, until there are enough


def test_loaders_side_by_side_give_the_batches_training_sees(trainer: Callable[..., L.Trainer]) -> None:
    class Pair(Seen):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
            return super().training_step(batch["a"], batch_idx)

    module = Pair()
    trainer(PGBCallback(calibration_size=24)).fit(module, {"a": make_loader(40), "b": make_loader(16)})
    assert torch.equal(module.rows, stacked(make_rows(24)))


def test_a_list_of_batches_is_a_loader(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    module.calibration_dataloader = lambda: list(make_loader(24))  # type: ignore[assignment]
    trainer(PGBCallback(calibration_size=16)).fit(module, make_loader())
    assert torch.equal(module.rows, stacked(make_rows(24)[:16]))


def test_rows_that_a_sampler_leaves_out_are_never_shown(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    fold = DataLoader(make_rows(40), batch_size=8, sampler=SubsetRandomSampler(range(16)))  # type: ignore[arg-type]
    trainer(PGBCallback()).fit(module, fold)
    assert same_rows(module.rows, stacked(make_rows(40)[:16]))


def test_an_iterator_would_be_used_up_and_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(MisconfigurationException, match="the training data is an iterator"):
        trainer(PGBCallback()).fit(OwnModule(), iter(make_loader()))


def test_a_calibration_loader_that_is_none_is_no_loader(trainer: Callable[..., L.Trainer]) -> None:
    module = OwnModule()
    module.held_out = lambda: None  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match=r"OwnModule.held_out gave None instead of a loader"):
        trainer(PGBCallback(calibration="held_out")).fit(module, make_loader())


def test_fast_dev_run_calibrates_on_as_little_as_it_trains_on(trainer: Callable[..., L.Trainer]) -> None:
    module = Seen()
    trainer(PGBCallback(), fast_dev_run=2).fit(module, datamodule=CalibrationData())
    assert torch.equal(module.rows, stacked(make_rows(16, seed=7)))


def test_more_than_there_is_is_refused_before_any_compute(trainer: Callable[..., L.Trainer]) -> None:
    for data in ({"datamodule": CalibrationData()}, {"train_dataloaders": make_loader(24)}):
        module = Seen()
        with pytest.raises(MisconfigurationException, match=r"calibration_size=25 was asked for.* has 24 samples"):
            trainer(PGBCallback(calibration_size=25)).fit(module, **data)  # type: ignore[arg-type]
        assert module.shown.batches == []
    module = Seen()
    with pytest.raises(MisconfigurationException, match=r"calibration_size=41 was asked for.* has 40 samples"):
        trainer(PGBCallback(calibration_size=41)).fit(module, DataLoader(Stream(), batch_size=8))


def test_an_empty_loader_and_a_name_without_loader_are_refused(trainer: Callable[..., L.Trainer]) -> None:
    class Empty(Data):
        def calibration_dataloader(self) -> list[Any]:
            return []

    with pytest.raises(MisconfigurationException, match="calibration loader"):
        trainer(PGBCallback()).fit(OwnModule(), datamodule=Empty())
    with pytest.raises(
        MisconfigurationException, match="'held_out': there is no attribute of that name on Data and Own"
    ):
        trainer(PGBCallback(calibration="held_out")).fit(OwnModule(), datamodule=Data())


@pytest.mark.parametrize("how", ["split", "generator"])
def test_training_draws_what_it_would_draw_without_pruning(how: str, trainer: Callable[..., L.Trainer]) -> None:
    class Drawn(OwnModule):
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Identity()
            self.rows.seen = []  # type: ignore[assignment]

        def train_dataloader(self) -> DataLoader[Any]:
            if how == "split":
                return DataLoader(random_split(make_rows(), [24, 24])[0], batch_size=8, shuffle=True)  # type: ignore[arg-type]
            return weighted

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.rows.seen.append(batch[0].sum(1).tolist())  # type: ignore[operator, union-attr]

    orders = []
    for callbacks in ([], [PGBCallback()]):
        L.seed_everything(2)
        sampler = WeightedRandomSampler(torch.ones(48), 24, generator=torch.Generator().manual_seed(1))
        weighted: DataLoader[Any] = DataLoader(make_rows(), batch_size=8, sampler=sampler)  # type: ignore[arg-type]
        module = Drawn()
        trainer(*callbacks).fit(module)
        orders.append(list(module.rows.seen))  # type: ignore[arg-type]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 3


def test_a_data_set_that_can_be_read_once_is_refused(trainer: Callable[..., L.Trainer]) -> None:
    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = iter(make_rows())

        def __iter__(self) -> Any:
            return self.rows

    with pytest.raises(
        MisconfigurationException, match="the training data is an iterator, which calibration would use"
    ):
        trainer(PGBCallback()).fit(OwnModule(), DataLoader(Once(), batch_size=8))
