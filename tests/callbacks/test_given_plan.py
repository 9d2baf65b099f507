"""The plan file: written by every run, readable, editable, and applied again without calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import ResumableModule, UninterruptedFit, make_trainer, train_loader
from helpers.own import OwnModule, make_loader, shapes
from helpers.tiny import classifier
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pgb_lightning import PruningPlan, apply_plan
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


class NeverCalibrate(OwnModule):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        assert self.training, "calibrated"
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def path(uninterrupted: UninterruptedFit) -> Path:
    return uninterrupted.folder / "plan.json"


def edited(path: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    plain = json.loads(path.read_text())
    change(plain)
    (folder / "edited.json").write_text(json.dumps(plain))
    return folder / "edited.json"


def test_the_file_describes_every_matrix_and_sublayer(uninterrupted: UninterruptedFit, path: Path) -> None:
    plain = json.loads(path.read_text())
    assert next(iter(plain)) == "summary"
    assert plain["schema_version"] == 1
    assert len(plain["fingerprint"]) == 16
    assert plain["summary"]["sublayers"][0] == {"layer": 0, "attention": "kept", "ffn": "kept"}
    assert plain["summary"]["kept_parameters"] == uninterrupted.snapshot["plan"]["summary"]["kept_parameters"]
    for entry in plain["matrices"]:
        assert {"layer", "kind", "num_groups", "kept_share", "importance_kept", "predicted_error"} <= entry.keys()
        dense_matrix = entry["input_index"] is None
        assert entry["predicted_error"] >= 0
        assert entry["predicted_error"] == 0 or not dense_matrix
        assert (entry["importance_kept"] == 1) == dense_matrix


def test_the_file_is_written_to_the_loggers_folder(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "name")
    pgb = PGBCallback()
    trainer(pgb, logger=logger).fit(OwnModule(), make_loader())
    assert PruningPlan.load(Path(logger.log_dir) / "plan.json") == pgb.plan


def test_the_file_is_written_next_to_the_checkpoints_if_the_logger_has_no_folder_per_run(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    class OneFolder(Logger):  # like W&B, MLflow and Comet
        name, version, save_dir = "all", "1", str(tmp_path / "all")

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            """Do nothing."""

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            """Do nothing."""

    pgb, saved = PGBCallback(), ModelCheckpoint(tmp_path / "run")
    trainer(pgb, saved, logger=OneFolder(), enable_checkpointing=True).fit(OwnModule(), make_loader())
    assert PruningPlan.load(tmp_path / "run" / "plan.json") == pgb.plan
    assert not (tmp_path / "all").exists()


def test_the_plan_is_applied_again_without_calibration(path: Path, trainer: MakeTrainer) -> None:
    expected, module = OwnModule(), NeverCalibrate()
    apply_plan(find_encoder(expected), PruningPlan.load(path))
    pgb = PGBCallback(plan=path)
    trainer(pgb, max_epochs=0).fit(module, make_loader())
    state = expected.net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in module.net.state_dict().items())
    assert pgb.plan == PruningPlan.load(path)
    trainer(PGBCallback(plan=str(path))).fit(NeverCalibrate(), make_loader())  # and it trains


def test_with_compensation_it_equals_the_first_run(path: Path, trainer: MakeTrainer) -> None:
    first, again = OwnModule(), OwnModule()
    trainer(PGBCallback(), max_epochs=0).fit(first, make_loader())
    trainer(PGBCallback(plan=path, compensation=True), max_epochs=0).fit(again, make_loader())
    state = first.state_dict()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())


def test_an_edited_plan_is_applied(path: Path, trainer: MakeTrainer, tmp_path: Path) -> None:
    def drop_ffn_and_keep_query(plain: dict[str, Any]) -> None:
        for entry in plain["matrices"]:
            del entry["num_groups"]
            if entry["layer"] == 0 and entry["kind"] in ("W1", "W2"):
                entry["input_index"] = entry["output_index"] = []
            if entry["kind"] == "Q":
                entry["input_index"] = entry["output_index"] = None

    pgb, module = PGBCallback(plan=edited(path, tmp_path, drop_ffn_and_keep_query)), OwnModule()
    trainer(pgb).fit(module, make_loader())
    encoder = find_encoder(module)
    assert pgb.plan is not None
    assert pgb.plan.is_dropped(0, "ffn")
    assert all(type(encoder.matrix(layer, "Q")) is nn.Linear for layer in range(2))


def test_a_plan_for_other_weights_is_applied_with_a_warning(path: Path, trainer: MakeTrainer) -> None:
    module = OwnModule(seed=1)
    with pytest.warns(UserWarning, match="other weights"):
        trainer(PGBCallback(plan=path)).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


def test_resuming_keeps_the_structure_and_warns_of_another_plan(
    uninterrupted: UninterruptedFit, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_trainer(other, epochs=0).fit(ResumableModule(seed=2), train_loader(), make_loader(16))
    trainer = make_trainer(tmp_path)
    trainer.callbacks = [PGBCallback(plan=other / "plan.json")]  # type: ignore[attr-defined]
    module = ResumableModule()
    with pytest.warns(UserWarning, match="plan"):
        trainer.fit(module, train_loader(), make_loader(16), ckpt_path=uninterrupted.folder / "epoch=1.ckpt")
    assert shapes(module.net) == shapes(uninterrupted.module.net)


class NoData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        raise AssertionError("data was read")


class Holder(OwnModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"model_type": "roberta", "layers": 2}, r"'bert'.*'roberta'"),
        ({"layers": 3}, r"\b2 layers.*\b3\b"),
        ({"layers": 2, "intermediate_size": 48}, r"[Ll]ayer 0 W1.*24 x 96.*24 x 48"),
    ],
)
def test_a_plan_that_does_not_fit_names_the_first_mismatch(
    net: dict[str, Any], message: str, path: Path, trainer: MakeTrainer
) -> None:
    module = Holder(classifier(**net))
    with pytest.raises(MisconfigurationException, match=f"PGBCallback: .*{message}"):
        trainer(PGBCallback(plan=path)).fit(module, datamodule=NoData())
    assert not is_pruned(find_encoder(module))


def use_floats(plain: dict[str, Any]) -> None:
    for entry in plain["matrices"]:
        if entry["input_index"]:
            entry["input_index"] = [[float(position) for position in block] for block in entry["input_index"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.update(schema_version=2), "schema_version=2"),
        (lambda plain: plain.pop("matrices"), "'matrices'"),
        (lambda plain: plain["matrices"][0].update(num_groups=3), r"[Ll]ayer 0 Q.*num_groups=3"),
        (lambda plain: plain["matrices"][0].update(kept="all"), "'kept'"),
        (lambda plain: plain["matrices"][5].update(input_index=[], output_index=[], num_groups=0), r"[Ll]ayer 0.*W2"),
        (use_floats, "index"),
        (lambda plain: plain.update(config="abc"), "config='abc'"),
        (lambda plain: plain["matrices"][0].update(importance_kept="much"), "importance_kept='much'"),
    ],
)
def test_an_invalid_file_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(MisconfigurationException, match=rf"PGBCallback: .*edited\.json.*{message}"):
        PGBCallback(plan=edited(path, tmp_path, change))


def test_settings_that_the_plan_determines_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"plan=.*pruning_ratio=0\.3, max_groups=4"):
        PGBCallback(0.3, plan=path, max_groups=4)
    with pytest.raises(MisconfigurationException, match=r"missing\.json"):
        PGBCallback(plan=tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(MisconfigurationException, match=r"text\.json"):
        PGBCallback(plan=tmp_path / "text.json")


def test_a_plan_that_keeps_everything_resumes(path: Path, trainer: MakeTrainer, tmp_path: Path) -> None:
    def keep(plain: dict[str, Any]) -> None:
        for entry in plain["matrices"]:
            entry["input_index"] = entry["output_index"] = None
            del entry["num_groups"]

    dense = edited(path, tmp_path, keep)
    saving = trainer(PGBCallback(plan=dense), ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True)
    saving.fit(ResumableModule(), make_loader())
    resumed = trainer(PGBCallback(plan=dense), max_epochs=2)
    resumed.fit(ResumableModule(), make_loader(), ckpt_path=tmp_path / "end.ckpt")
    assert resumed.current_epoch == 2


def test_a_plan_that_cannot_be_written_is_a_warning(trainer: MakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    module = ResumableModule()
    with pytest.warns(UserWarning, match=r"plan\.json"):
        trainer(PGBCallback(), ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True).fit(module, make_loader())
    assert is_pruned(find_encoder(module))
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "end.ckpt"}


def test_evaluating_another_checkpoint_does_not_change_the_plan(trainer: MakeTrainer, tmp_path: Path) -> None:
    other = trainer(PGBCallback(0.7), ModelCheckpoint(tmp_path, "other"), enable_checkpointing=True)
    other.fit(ResumableModule(seed=1), make_loader())
    pgb, module = PGBCallback(0.3), ResumableModule()
    fitted = trainer(pgb)
    fitted.fit(module, make_loader())
    plan = pgb.plan
    fitted.validate(ResumableModule(), make_loader(8), ckpt_path=tmp_path / "other.ckpt", verbose=False)
    assert pgb.plan is plan
    pruned = ResumableModule.load_from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(MisconfigurationException, match="already"):
        trainer(pgb).fit(pruned, make_loader())  # The callback's plan is that of another module.
