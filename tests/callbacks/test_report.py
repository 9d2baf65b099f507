"""PGBReport: after pruning, after re-finetuning, when resumed, with a given plan, and under ddp."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.own import OwnModule, make_loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pgb_lightning import PruningPlan
from pgb_lightning.callbacks import PGBCallback, PGBReport
from pgb_lightning.report import Facts, render_page
from pgb_lightning.report.command import run_report
from pgb_lightning.report.facts import plan_digest

MakeTrainer = Callable[..., L.Trainer]


class ImageLogger(CSVLogger):
    """A logger that accepts images like W&B's, and reads the report when it gets the first one."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="run")
        self.images: list[str] = []
        self.seen: dict[str, Any] = {}

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images.append(key)
        self.seen = self.seen or read(Path(self.log_dir) / "report")


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PGBCallback, PGBReport, ImageLogger, L.Trainer]:
    """Prune and re-finetune once with everything enabled. Read only."""
    folder = tmp_path_factory.mktemp("reported")
    pgb, report = PGBCallback(), PGBReport(dense_scores={"val_loss": 0.25})
    logger = ImageLogger(str(folder))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,
        callbacks=[report, pgb, ModelCheckpoint(folder, save_last=True)],
    )
    trainer.fit(OwnModule(), make_loader(), make_loader(16))
    return folder, pgb, report, logger, trainer


def test_the_report_is_written_next_to_the_plan(reported: tuple[Any, ...]) -> None:
    folder, pgb, report, _, trainer = reported
    assert PruningPlan.load(folder / "run" / "plan.json") == pgb.plan
    files = {path.name for path in (folder / "run" / "report").iterdir()}
    assert files == {"index.html", "report.json", "groups.png", "kept.png", "matrices.png"}
    page = (folder / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert page == render_page(pgb.plan, report.facts)
    found = read(folder / "run" / "report")
    assert found["scores"]["dense"] == {"val_loss": 0.25}
    assert found["scores"]["re-finetuned"] == {"val_loss": pytest.approx(float(trainer.callback_metrics["val_loss"]))}
    assert found["scores"]["pruned"]["val_loss"] > found["scores"]["re-finetuned"]["val_loss"]
    assert found["latency"][0]["length"] == 40
    assert all(entry["measured_error"] is not None for entry in found["matrices"] + found["sublayers"])
    assert len(report.facts.maps) == len(pgb.plan.matrices)


def test_the_report_is_written_after_the_pruning(reported: tuple[Any, ...]) -> None:
    _, _, _, logger, _ = reported
    assert logger.seen["scores"]["pruned"]
    assert logger.seen["scores"]["re-finetuned"] == {}
    assert logger.images == ["pgb/groups", "pgb/kept", "pgb/matrices"]  # once


def test_a_report_does_not_change_training(trainer: MakeTrainer) -> None:
    def weights(*callbacks: L.Callback) -> dict[str, torch.Tensor]:
        L.seed_everything(1)
        module = OwnModule()
        trainer(PGBCallback(), *callbacks).fit(module, make_loader(shuffle=True), make_loader(16))
        return dict(module.state_dict())

    with_report, without = weights(PGBReport()), weights()
    assert all(torch.equal(with_report[name], value) for name, value in without.items())


def test_a_resumed_fit_reports_earlier_measurements(
    reported: tuple[Any, ...], trainer: MakeTrainer, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder, pgb, before, _, _ = reported
    report = PGBReport(latency=False, output_dir=str(tmp_path / "out"), dense_ckpt="gone.ckpt")
    resumed = trainer(report, PGBCallback(), max_epochs=3)
    resumed.fit(OwnModule(), make_loader(), make_loader(16), ckpt_path=folder / "last.ckpt")
    assert report.facts is not None
    for name in ("maps", "matrix_errors", "sublayer_errors", "latency", "plan"):
        assert getattr(report.facts, name) == getattr(before.facts, name)
    assert not any("PGBReport" in str(warning.message) for warning in recwarn)
    scores = read(tmp_path / "out")["scores"]
    assert scores["dense"] == before.facts.scores["dense"]
    assert scores["pruned"] == before.facts.scores["pruned"]
    assert scores["re-finetuned"]["val_loss"] == float(resumed.callback_metrics["val_loss"])
    page = run_report(str(folder / "last.ckpt"), str(tmp_path / "of-the-checkpoint"))
    assert page.read_text(encoding="utf-8") == render_page(pgb.plan, before.facts)


def test_a_checkpoint_without_a_report_still_has_its_plan(trainer: MakeTrainer, tmp_path: Path) -> None:
    first = trainer(PGBCallback(), ModelCheckpoint(tmp_path, filename="end"), enable_checkpointing=True)
    first.fit(OwnModule(), make_loader())
    report = PGBReport(output_dir=str(tmp_path / "out"), latency=False)
    trainer(report, PGBCallback(), max_epochs=2).fit(OwnModule(), make_loader(), ckpt_path=tmp_path / "end.ckpt")
    found = read(tmp_path / "out")
    assert found["kept_parameters"] > 0
    assert {entry["measured_error"] for entry in found["matrices"]} == {None}
    assert "not measured" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_given_plan_is_reported_without_importance(reported: tuple[Any, ...], trainer: MakeTrainer) -> None:
    pgb, report = PGBCallback(plan=reported[0] / "run" / "plan.json"), PGBReport()
    trainer(report, pgb).fit(OwnModule(), make_loader())
    assert report.facts is not None
    assert pgb.plan is not None
    assert (report.facts.maps, report.facts.matrix_errors) == ({}, {})
    assert report.facts.latency
    assert report.facts.plan == plan_digest(pgb.plan)


def test_a_compensated_given_plan_has_errors(reported: tuple[Any, ...], trainer: MakeTrainer) -> None:
    report = PGBReport(latency=False)
    trainer(report, PGBCallback(plan=reported[0] / "run" / "plan.json", compensation=True)).fit(
        OwnModule(), make_loader()
    )
    assert report.facts is not None
    before = reported[2].facts
    assert report.facts.matrix_errors.keys() == before.matrix_errors.keys()
    assert report.facts.maps == before.maps


def test_without_compensation_errors_are_not_measured(trainer: MakeTrainer) -> None:
    report = PGBReport(latency=False)
    trainer(report, PGBCallback(compensation=False)).fit(OwnModule(), make_loader())
    assert report.facts is not None
    assert report.facts.maps
    assert not report.facts.matrix_errors


def test_the_same_callbacks_start_over_with_another_module(trainer: MakeTrainer) -> None:
    pgb, report = PGBCallback(), PGBReport(latency=False)
    found = []
    for seed in (0, 1):
        trainer(pgb, report, num_sanity_val_steps=-1).fit(OwnModule(seed=seed), make_loader(), make_loader(16))
        assert report.facts is not None
        found.append(report.facts)
    assert found[0].plan != found[1].plan
    assert found[0].scores["pruned"] != found[1].scores["pruned"]


def test_a_partial_sanity_check_gives_no_score(trainer: MakeTrainer) -> None:
    report = PGBReport(latency=False)
    trainer(PGBCallback(), report, num_sanity_val_steps=1).fit(OwnModule(), make_loader(), make_loader(16))
    assert report.facts is not None
    assert list(report.facts.scores) == ["re-finetuned"]


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"max_epochs": 0, "enable_checkpointing": True}, {}])
def test_runs_without_files_write_no_report(settings: dict[str, Any], trainer: MakeTrainer, tmp_path: Path) -> None:
    report = PGBReport(latency=False)
    trainer(PGBCallback(), report, **settings).fit(OwnModule(), make_loader(), make_loader(16))
    assert report.facts is not None
    assert len(list(tmp_path.rglob("index.html"))) == ("max_epochs" in settings)


def test_tables_are_printed(trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trainer(PGBCallback(), PGBReport()).fit(OwnModule(), make_loader(), make_loader(16))
    assert "re-finetuned" in caplog.text
    assert "8 x 40" in caplog.text


def test_without_matplotlib_there_is_a_page_and_a_warning(
    trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    logger = ImageLogger(str(tmp_path))
    with pytest.warns(UserWarning, match=r"pgb-lightning\[figures\]"):
        trainer(PGBCallback(), PGBReport(latency=False), logger=logger).fit(OwnModule(), make_loader())
    assert logger.images == []
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == {"index.html", "report.json"}


def test_a_folder_that_cannot_be_written_is_a_warning(trainer: MakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.warns(UserWarning, match=r"PGBReport.*taken"):
        trainer(PGBCallback(), PGBReport(output_dir=str(tmp_path / "taken"), latency=False)).fit(
            OwnModule(), make_loader()
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_dir": 3}, "output_dir=3"),
        ({"output_dir": ""}, "output_dir=''"),
        ({"dense_ckpt": ["a"]}, r"dense_ckpt=\['a'\]"),
        ({"latency": 1}, "latency=1"),
        ({"dense_scores": 0.9}, r"dense_scores=0\.9"),
        ({"dense_scores": {"val_accuracy": "high"}}, r"dense_scores\['val_accuracy'\]='high'"),
        ({"dense_scores": {"val_accuracy": float("nan")}}, r"dense_scores\['val_accuracy'\]=nan"),
        ({"dense_scores": {"val_accuracy": 0.9}, "dense_ckpt": "best.ckpt"}, "dense_scores and dense_ckpt"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        PGBReport(**settings)


def test_a_report_without_a_pgb_callback_is_refused(trainer: MakeTrainer) -> None:
    with pytest.raises(MisconfigurationException, match="PGBCallback"):
        trainer(PGBReport()).fit(OwnModule(), make_loader())
    trainer(PGBReport()).validate(OwnModule(), make_loader(16))  # which needs no PGBCallback


@pytest.mark.slow
def test_rank_zero_writes_the_report_of_all_ranks(two_processes: Path, trainer: MakeTrainer) -> None:
    folder = two_processes / "report"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("index.html"))
    assert files == ["report/index.html"]
    facts = [Facts.from_dict(json.loads((folder / f"facts{rank}.json").read_text())) for rank in range(2)]
    assert facts[1] == Facts()
    assert facts[0].maps
    alone = PGBReport(latency=False)
    trainer(PGBCallback(0.5), alone).fit(OwnModule(), make_loader())
    assert alone.facts is not None
    assert facts[0].matrix_errors == pytest.approx(alone.facts.matrix_errors, rel=1e-4, abs=1e-6)
    assert facts[0].sublayer_errors == pytest.approx(alone.facts.sublayer_errors, rel=1e-4, abs=1e-6)
