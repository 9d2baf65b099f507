"""The commands fit, validate, test and predict, from fine-tuning to re-finetuning."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cli.main import PGBCLI, main, run
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification

FINETUNE = "glue/sst2/finetune"
PRUNE = "glue/sst2/prune"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the working directory of the two fits that the tests only read."""
    return tmp_path_factory.mktemp("fits")


def fit_in(folder: Path, args: list[str]) -> PGBCLI:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pgb"])
        return run(["fit", *args])


@pytest.fixture(scope="module")
def finetuned(folder: Path, overrides: list[str]) -> PGBCLI:
    """Fine-tune for one epoch with the packaged configuration."""
    more = ["--model.learning_rate", "0.001", "--trainer.log_every_n_steps", "2"]
    return fit_in(folder, ["--config", FINETUNE, *overrides, *more])


@pytest.fixture(scope="module")
def finetuned_ckpt(finetuned: PGBCLI, folder: Path) -> str:
    return str(folder / "runs/sst2/finetune/last.ckpt")


@pytest.fixture(scope="module")
def pruned(finetuned: PGBCLI, folder: Path, overrides: list[str]) -> PGBCLI:
    """Prune and re-finetune the fine-tuned model with the packaged configuration."""
    return fit_in(folder, ["--config", PRUNE, *overrides, "--data.calibration_size", "64"])


@pytest.fixture(scope="module")
def pruned_ckpt(pruned: PGBCLI, folder: Path) -> str:
    return str(folder / "runs/sst2/prune/last.ckpt")


def read_weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def logged_columns(folder: Path) -> set[str]:
    """Return the columns of a run's CSV log that have values."""
    with open(folder / "metrics.csv", newline="") as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


# ---- fine-tuning ------------------------------------------------------------------------------------------------


def test_fit_writes_checkpoints_a_log_and_its_configuration(finetuned: PGBCLI, folder: Path) -> None:
    assert finetuned.trainer.global_step == 4
    runs = folder / "runs" / "sst2"
    files = {str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file()}
    logs = "logs/finetune/version_0"
    expected = {
        "finetune/best.ckpt",
        "finetune/last.ckpt",
        f"{logs}/config.yaml",
        f"{logs}/hparams.yaml",
        f"{logs}/metrics.csv",
    }
    assert {name for name in files if "prune" not in name} == expected
    assert {"train_loss", "val_loss", "val_accuracy"} <= logged_columns(runs / logs)
    saved = yaml.safe_load((runs / logs / "config.yaml").read_text())
    assert saved["model"]["init_args"]["learning_rate"] == 0.001
    assert saved["data"]["init_args"]["max_length"] == 32


def test_fit_resumes_from_a_checkpoint(finetuned_ckpt: str, overrides: list[str]) -> None:
    more = [*overrides, "--trainer.max_epochs", "2", "--ckpt_path", finetuned_ckpt]
    resumed = run(["fit", "--config", FINETUNE, *more])
    assert (resumed.trainer.current_epoch, resumed.trainer.global_step) == (2, 8)
    assert resumed.model.learning_rate == 0.001  # from the checkpoint, not from the file


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_evaluated(command: str, finetuned: PGBCLI, finetuned_ckpt: str, overrides: list[str]) -> None:
    before = float(finetuned.trainer.callback_metrics["val_loss"])
    cli = run([command, "--config", FINETUNE, *overrides, "--ckpt_path", finetuned_ckpt])
    prefix = {"validate": "val", "test": "test"}[command]
    assert float(cli.trainer.callback_metrics[f"{prefix}_loss"]) == pytest.approx(before, rel=1e-5)


def test_predict_runs_from_a_checkpoint(finetuned_ckpt: str, overrides: list[str]) -> None:
    cli = run(["predict", "--config", FINETUNE, *overrides, "--ckpt_path", finetuned_ckpt])
    torch.testing.assert_close(cli.model.state_dict(), read_weights(finetuned_ckpt))


def test_load_from_checkpoint_reads_a_checkpoint_of_the_command(finetuned_ckpt: str) -> None:
    module = TextClassification.load_from_checkpoint(finetuned_ckpt, weights_only=True)
    assert (module.task.name, module.learning_rate) == ("sst2", 0.001)
    torch.testing.assert_close(module.state_dict(), read_weights(finetuned_ckpt))


def test_a_checkpoint_does_not_need_the_pretrained_model(finetuned_ckpt: str, overrides: list[str]) -> None:
    missing = [*overrides, "--model.model_name_or_path", "no/such/model"]
    cli = run(["validate", "--config", FINETUNE, *missing, "--ckpt_path", finetuned_ckpt])
    assert cli.trainer.callback_metrics["val_loss"] > 0


def test_the_command_line_takes_precedence_over_a_checkpoint(
    finetuned_ckpt: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGBCLI, "_run_subcommand", lambda *_: None)
    args = ["validate", "--config", FINETUNE, *overrides, "--ckpt_path", finetuned_ckpt]
    assert run(args).model.learning_rate == 0.001  # from the checkpoint, not the file's 2e-5
    for given in (["--model.learning_rate", "0.5"], ["--model.init_args.learning_rate=0.5"]):
        assert run([*args, *given]).model.learning_rate == 0.5


def test_a_part_of_a_hyperparameter_of_a_checkpoint_cannot_be_replaced(
    finetuned_ckpt: str, overrides: list[str]
) -> None:
    part = ["--model.hf_config.hidden_size", "12", "--ckpt_path", finetuned_ckpt]
    with pytest.raises(SystemExit, match=r"^pgb: --model\.hf_config\.hidden_size .*ckpt_path"):
        main(["validate", "--config", FINETUNE, *overrides, *part])


@pytest.mark.parametrize("keyword", ["last", "best", "hpc", "registry", "registry:model:v1", "s3://bucket/a.ckpt"])
def test_keywords_for_checkpoints_are_passed_to_lightning(
    keyword: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGBCLI, "_run_subcommand", lambda *_: None)
    monkeypatch.setattr(PGBCLI, "instantiate_classes", lambda *_: None)
    cli = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", keyword])
    assert cli.config.validate.ckpt_path == keyword


def test_a_tilde_in_ckpt_path_is_expanded(
    finetuned_ckpt: str, folder: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGBCLI, "_run_subcommand", lambda *_: None)
    monkeypatch.setenv("HOME", str(folder))
    cli = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", "~/runs/sst2/finetune/last.ckpt"])
    assert cli.model.learning_rate == 0.001
    with pytest.raises(SystemExit, match=r"^pgb: ckpt_path='~/runs' is a folder"):
        main(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", "~/runs"])


def test_a_checkpoint_of_a_python_program_is_evaluated(overrides: list[str]) -> None:
    model, data_dir = overrides[1], overrides[5]
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(TextClassification(model, task="sst2"), GLUEDataModule("sst2", model, data_dir, max_length=32))
    trainer.save_checkpoint("python.ckpt")
    cli = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", "python.ckpt"])
    torch.testing.assert_close(cli.model.state_dict(), read_weights("python.ckpt"))


# ---- pruning ----------------------------------------------------------------------------------------------------


def test_pruning_starts_from_the_fine_tuned_checkpoint(pruned: PGBCLI, pruned_ckpt: str, finetuned_ckpt: str) -> None:
    (callback,) = (one for one in pruned.trainer.callbacks if isinstance(one, PGBCallback))
    assert callback.plan is not None
    sizes = [sum(weight.numel() for weight in read_weights(path).values()) for path in (pruned_ckpt, finetuned_ckpt)]
    assert sizes[0] < sizes[1]
    hparams = torch.load(pruned_ckpt, weights_only=True)["hyper_parameters"]
    assert "fine_tuned_ckpt" not in hparams


def test_a_pruned_checkpoint_resumes_and_validates_without_the_dense_one(
    pruned: PGBCLI, pruned_ckpt: str, overrides: list[str]
) -> None:
    before = float(pruned.trainer.callback_metrics["val_loss"])
    assert not Path("runs").exists()  # no dense checkpoint in this working directory
    args = ["--config", PRUNE, *overrides, "--ckpt_path", pruned_ckpt]
    validated = run(["validate", *args])
    assert float(validated.trainer.callback_metrics["val_loss"]) == pytest.approx(before, rel=1e-5)
    resumed = run(["fit", *args, "--trainer.max_epochs", "2"])
    assert resumed.trainer.global_step == 8
    shapes = {name: weight.shape for name, weight in resumed.model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in read_weights(pruned_ckpt).items()}


@pytest.mark.parametrize("command", ["test", "predict"])
def test_the_weights_of_a_pruned_checkpoint_are_restored_exactly(
    command: str, pruned_ckpt: str, overrides: list[str]
) -> None:
    cli = run([command, "--config", PRUNE, *overrides, "--ckpt_path", pruned_ckpt])
    restored, stored = cli.model.state_dict(), read_weights(pruned_ckpt)
    assert restored.keys() == stored.keys()
    assert all(torch.equal(restored[name], value) for name, value in stored.items())
