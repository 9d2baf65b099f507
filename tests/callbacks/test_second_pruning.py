"""Fits that prune a pruned module further, and fits that must not."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import ResumableModule, logits
from helpers.own import make_loader, shapes
from helpers.several import PASSAGE, QUERY, BiEncoder, embeddings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from pgb_lightning import PruningPlan
from pgb_lightning.callbacks import PGBCallback, PGBReport
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned, matches

MakeTrainer = Callable[..., L.Trainer]


class NeverCalibrate(ResumableModule):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        assert self.training, "calibrated"
        return super().training_step(batch, batch_idx)


class NoData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        raise AssertionError("data was read")


def plain(ratio: float, **settings: Any) -> PGBCallback:
    """Return a callback whose plan leaves plain linear layers."""
    return PGBCallback(ratio, **{"max_groups": 1, **settings})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a fit that removes 30 %."""
    folder = tmp_path_factory.mktemp("first")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[plain(0.3), ModelCheckpoint(folder, "end")], **quiet
    )
    trainer.fit(ResumableModule(), make_loader())
    return folder / "end.ckpt"


def test_30_percent_then_60_percent_of_the_dense_encoder(
    first: Path, trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, pgb = ResumableModule.load_from_checkpoint(first), plain(0.6)
    report, logger = PGBReport(latency=False), CSVLogger(str(tmp_path), name="", version="run")
    saver = ModelCheckpoint(tmp_path, "end")
    fit = trainer(pgb, report, saver, logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit.fit(module, make_loader(), make_loader(16))
    plan = pgb.plan
    assert plan is not None
    assert plan.pruning_ratio == pytest.approx(0.6, abs=0.01)
    assert PruningPlan.load(tmp_path / "run" / "plan.json") == plan
    assert f"removed {plan.pruning_ratio:.2%} of {plan.total_parameters:,}" in caplog.text
    assert re.search(r"; (29|30)\.\d+% were removed before", caplog.text)
    numbers = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert numbers["pruning_ratio"] == plan.pruning_ratio
    assert numbers["flops"]["pruned"] < numbers["flops"]["dense"]
    expected = logits(module)

    path = tmp_path / "end.ckpt"
    assert torch.equal(logits(ResumableModule.load_from_checkpoint(path)), expected)
    for start in (NeverCalibrate(seed=5), NeverCalibrate.load_from_checkpoint(first)):
        again = plain(0.6)
        trainer(again, max_epochs=2).fit(start, make_loader(), ckpt_path=path)
        assert again.plan == plan
        assert shapes(start) == shapes(module)
    structure = shapes(module)
    trainer(pgb).fit(module, make_loader())  # A second fit of the same callback continues.
    assert pgb.plan == plan
    assert shapes(module) == structure


def test_a_module_that_was_just_pruned(trainer: MakeTrainer) -> None:
    module = ResumableModule()
    trainer(plain(0.3)).fit(module, make_loader())
    pgb = PGBCallback(0.6)
    pgb.check(module)
    trainer(pgb).fit(module, make_loader())
    assert pgb.plan is not None
    assert pgb.plan.pruning_ratio == pytest.approx(0.6, abs=0.01)
    assert matches(find_encoder(module), pgb.plan)


def test_a_resumed_fit_never_prunes(first: Path, trainer: MakeTrainer) -> None:
    module = NeverCalibrate()
    with pytest.warns(UserWarning, match=r"pruning_ratio=0\.3.*without ckpt_path"):
        trainer(plain(0.6), max_epochs=2).fit(module, make_loader(), ckpt_path=first)
    assert shapes(module) == shapes(ResumableModule.load_from_checkpoint(first))


@pytest.mark.parametrize("ratio", [0.2, 0.3])
def test_a_target_that_is_reached_already_is_refused(ratio: float, first: Path, trainer: MakeTrainer) -> None:
    module = ResumableModule.load_from_checkpoint(first)
    before = logits(module)
    with pytest.raises(MisconfigurationException, match=rf"already pruned: 0\.(29|30)\d+ .*pruning_ratio={ratio}\b"):
        trainer(plain(ratio)).fit(module, datamodule=NoData())
    assert torch.equal(logits(module), before)


@pytest.mark.parametrize("compensation", [None, True])
def test_the_second_plan_is_applied_to_the_module_it_was_made_for(
    compensation: bool | None, first: Path, trainer: MakeTrainer, tmp_path: Path
) -> None:
    module, pgb = ResumableModule.load_from_checkpoint(first), plain(0.6)
    trainer(pgb, ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True).fit(module, make_loader())
    given = PGBCallback(plan=tmp_path / "plan.json", compensation=compensation)
    again = ResumableModule.load_from_checkpoint(first)
    trainer(given).fit(again, make_loader())
    assert shapes(again) == shapes(module)
    assert given.plan == pgb.plan
    with pytest.raises(MisconfigurationException, match=r"the plan's matrix is"):
        trainer(PGBCallback(plan=tmp_path / "plan.json")).fit(ResumableModule(), datamodule=NoData())
    with pytest.raises(MisconfigurationException, match=r"already pruned.*dense"):
        trainer(PGBCallback(plan=first.parent / "plan.json")).fit(
            ResumableModule.load_from_checkpoint(first), datamodule=NoData()
        )


def test_groups_cannot_be_pruned_further(trainer: MakeTrainer) -> None:
    module = ResumableModule()
    trainer(PGBCallback(0.5, preset="balanced")).fit(module, make_loader())
    with pytest.raises(MisconfigurationException, match=r"already pruned.*split into blocks.*dense"):
        trainer(PGBCallback(0.7)).fit(module, datamodule=NoData())


def test_one_of_two_encoders_is_pruned_further(trainer: MakeTrainer, tmp_path: Path) -> None:
    module = BiEncoder()
    trainer(plain(0.3, encoder="query")).fit(module, make_loader())
    callbacks = plain(0.6, encoder="query"), plain(0.5, encoder=PASSAGE)
    trainer(*callbacks, ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True).fit(module, make_loader())
    query, passage = (each.plan for each in callbacks)
    assert query is not None
    assert passage is not None
    assert (query.pruning_ratio, passage.pruning_ratio) == pytest.approx((0.6, 0.5), abs=0.01)
    assert query.dense_sizes is not None
    assert passage.dense_sizes is None
    assert matches(find_encoder(module, QUERY), query)
    loaded = BiEncoder.load_from_checkpoint(tmp_path / "end.ckpt")
    assert torch.equal(embeddings(loaded), embeddings(module))
    assert is_pruned(find_encoder(loaded, PASSAGE))
