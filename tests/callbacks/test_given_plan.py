"""The plan is a file: written by every run, readable, editable, and carried out again without calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.entries import Entering, Whole, make_trainer, train_loader
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
        assert self.training, "nothing may be calibrated"
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def path(whole: Whole) -> Path:
    return whole.folder / "plan.json"


def edited(path: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    plain = json.loads(path.read_text())
    change(plain)
    (folder / "edited.json").write_text(json.dumps(plain))
    return folder / "edited.json"


def test_the_file_says_what_became_of_everything(whole: Whole, path: Path) -> None:
    plain = json.loads(path.read_text())
    assert next(iter(plain)) == "summary"
    assert plain["schema_version"] == 1
    assert len(plain["fingerprint"]) == 16
    assert plain["summary"]["sublayers"][0] == {"layer": 0, "attention": "kept", "ffn": "kept"}
    assert plain["summary"]["kept_parameters"] == whole.snapshot["plan"]["summary"]["kept_parameters"]
    for entry in plain["matrices"]:
        assert {"layer", "kind", "num_groups", "kept_share", "importance_kept", "predicted_error"} <= entry.keys()
        whole_matrix = entry["input_index"] is None
        assert entry["predicted_error"] >= 0
        assert entry["predicted_error"] == 0 or not whole_matrix
        assert (entry["importance_kept"] == 1) == whole_matrix


def test_the_file_lies_in_the_logger_s_folder(trainer: MakeTrainer, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "name")
    pgb = PGBCallback()
    trainer(pgb, logger=logger).fit(OwnModule(), make_loader())
    assert PruningPlan.load(Path(logger.log_dir) / "plan.json") == pgb.plan


def test_where_a_logger_has_no_folder_for_each_run_the_plan_lies_with_the_checkpoints(
    trainer: MakeTrainer, tmp_path: Path
) -> None:
    class OneFolder(Logger):  # as W&B's, MLflow's and Comet's are
        name, version, save_dir = "all", "1", str(tmp_path / "all")

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            """Keep nothing."""

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            """Keep nothing."""

    pgb, saved = PGBCallback(), ModelCheckpoint(tmp_path / "run")
    trainer(pgb, saved, logger=OneFolder(), enable_checkpointing=True).fit(OwnModule(), make_loader())
    assert PruningPlan.load(tmp_path / "run" / "plan.json") == pgb.plan
    assert not (tmp_path / "all").exists()


def test_the_plan_is_carried_out_again_without_calibration(path: Path, trainer: MakeTrainer) -> None:
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


def test_a_person_edits_it(path: Path, trainer: MakeTrainer, tmp_path: Path) -> None:
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


def test_other_weights_are_mentioned_and_no_obstacle(path: Path, trainer: MakeTrainer) -> None:
    module = OwnModule(seed=1)
    with pytest.warns(UserWarning, match="the plan was made for other weights of this shape"):
        trainer(PGBCallback(plan=path)).fit(module, make_loader())
    assert is_pruned(find_encoder(module))


def test_resuming_keeps_the_checkpoint_s_structure_and_mentions_another_plan(whole: Whole, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_trainer(other, epochs=0, callbacks=[]).fit(Entering(seed=2), train_loader(), make_loader(16))
    trainer = make_trainer(tmp_path)
    trainer.callbacks = [PGBCallback(plan=other / "plan.json")]  # type: ignore[attr-defined]
    module = Entering()
    with pytest.warns(UserWarning, match="pruned by another plan than the one given; it stays as it is"):
        trainer.fit(module, train_loader(), make_loader(16), ckpt_path=whole.folder / "epoch=1.ckpt")
    assert shapes(module.net) == shapes(whole.module.net)


class NoData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        raise AssertionError("no data may be read")


class Holder(OwnModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"model_type": "roberta", "layers": 2}, "the plan was made for a 'bert' encoder, but this one is 'roberta'"),
        ({"layers": 3}, "the plan has 2 layers, but the encoder has 3"),
        ({"layers": 2, "intermediate_size": 48}, "layer 0 W1: the plan is for 24 x 96, .* is 24 x 48"),
    ],
)
def test_a_plan_that_does_not_fit_names_the_first_mismatch(
    net: dict[str, Any], message: str, path: Path, trainer: MakeTrainer
) -> None:
    module = Holder(classifier(**net))
    with pytest.raises(MisconfigurationException, match=f"PGBCallback: {message}"):
        trainer(PGBCallback(plan=path)).fit(module, datamodule=NoData())
    assert not is_pruned(find_encoder(module))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.update(schema_version=2), "schema_version=2: this release .* reads plans of version 1"),
        (lambda plain: plain.pop("matrices"), "not a pruning plan: 'matrices'"),
        (lambda plain: plain["matrices"][0].update(num_groups=3), r"layer 0 Q: num_groups=3 contradicts input_index"),
        (lambda plain: plain["matrices"][0].update(kept="all"), "unknown field 'kept'"),
        (
            lambda plain: plain["matrices"][5].update(input_index=[], output_index=[], num_groups=0),
            "layer 0: W2 is pruned whole",
        ),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(MisconfigurationException, match=f"PGBCallback: .*edited.json' holds no plan .*: .*{message}"):
        PGBCallback(plan=edited(path, tmp_path, change))


def test_settings_that_the_plan_has_decided_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"has decided .*, so pruning_ratio=0.3, max_groups=4"):
        PGBCallback(0.3, plan=path, max_groups=4)
    with pytest.raises(MisconfigurationException, match=r"missing.json' cannot be read as a plan"):
        PGBCallback(plan=tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(MisconfigurationException, match=r"text.json' holds no plan"):
        PGBCallback(plan=tmp_path / "text.json")


def floats(plain: dict[str, Any]) -> None:
    for entry in plain["matrices"]:
        if entry["input_index"]:
            entry["input_index"] = [[float(position) for position in block] for block in entry["input_index"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (floats, "index lists must hold lists of whole numbers"),
        (lambda plain: plain.update(config="abc"), "config='abc' must be a mapping"),
        (lambda plain: plain["matrices"][0].update(importance_kept="much"), "importance_kept='much' must be a number"),
    ],
)
def test_values_of_another_type_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PGBCallback(plan=edited(path, tmp_path, change))


def test_a_plan_that_keeps_everything_resumes(path: Path, trainer: MakeTrainer, tmp_path: Path) -> None:
    def keep(plain: dict[str, Any]) -> None:
        for entry in plain["matrices"]:
            entry["input_index"] = entry["output_index"] = None
            del entry["num_groups"]

    whole = edited(path, tmp_path, keep)
    saving = trainer(PGBCallback(plan=whole), ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True)
    saving.fit(Entering(), make_loader())
    resumed = trainer(PGBCallback(plan=whole), max_epochs=2)
    resumed.fit(Entering(), make_loader(), ckpt_path=tmp_path / "end.ckpt")
    assert resumed.current_epoch == 2


def test_where_the_plan_cannot_be_written_the_fit_goes_on(trainer: MakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    module = Entering()
    with pytest.warns(UserWarning, match="PGB could not write the plan to"):
        trainer(PGBCallback(), ModelCheckpoint(tmp_path, "end"), enable_checkpointing=True).fit(module, make_loader())
    assert is_pruned(find_encoder(module))
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "end.ckpt"}


def test_evaluating_another_model_leaves_this_fit_s_plan(trainer: MakeTrainer, tmp_path: Path) -> None:
    other = trainer(PGBCallback(0.7), ModelCheckpoint(tmp_path, "other"), enable_checkpointing=True)
    other.fit(Entering(seed=1), make_loader())
    pgb, module = PGBCallback(0.3), Entering()
    fitted = trainer(pgb)
    fitted.fit(module, make_loader())
    plan = pgb.plan
    fitted.validate(Entering(), make_loader(8), ckpt_path=tmp_path / "other.ckpt", verbose=False)
    assert pgb.plan is plan
    grouped = Entering.load_from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(MisconfigurationException, match="is grouped already"):
        trainer(pgb).fit(grouped, make_loader())  # this callback pruned another module, by another plan
