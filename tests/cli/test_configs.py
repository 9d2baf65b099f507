"""The shipped configurations: what they say, and that they run as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import glue_rows, print_config, squad_folder

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cli.main import run
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.glue_tasks import TASKS, get_task
from pgb_lightning.surgery.checks import is_pruned

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = sorted((CONFIGS / "demo").glob("*.yaml"))
SQUAD = [
    CONFIGS / "squad" / version / f"{stage}.yaml" for version in ("v1.1", "v2.0") for stage in ("finetune", "prune")
]
GLUE = [CONFIGS / "glue" / task / f"{stage}.yaml" for task in TASKS for stage in ("finetune", "prune")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, as if the process had no arguments of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pgb"])


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Read what `--print_config` prints."""

    return partial(print_config, capsys)


def callbacks(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give each callback's arguments by its class, in the order of the file."""
    return {one["class_path"].rpartition(".")[2]: one.get("init_args", {}) for one in config["trainer"]["callbacks"]}


def test_there_is_one_file_a_task_and_stage() -> None:
    assert {*CONFIGS.rglob("glue/**/*.yaml")} == {*GLUE, CONFIGS / "glue" / "base.yaml"}
    assert {*CONFIGS.rglob("squad/**/*.yaml")} == {*SQUAD, CONFIGS / "squad" / "base.yaml"}


@pytest.mark.parametrize("path", [*GLUE, *SQUAD, *DEMO], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_configuration_has_the_papers_values(path: Path, printed: Callable[..., dict[str, Any]]) -> None:
    config = printed("fit", "--config", str(path))
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (data["batch_size"], data["eval_batch_size"], data["max_length"]) == (
        (16, 32, 384) if path in SQUAD else (32, 128, 128)
    )
    assert model["learning_rate"] == (3e-5 if path in SQUAD else 2e-5)
    assert "ExactResume" in callbacks(config)
    assert model["model_name_or_path"] == data["model_name_or_path"]
    assert config["trainer"]["max_epochs"] == (1 if path in DEMO else 3)
    assert data.get("calibration_size") in (None, 2048)
    if path.stem == "prune":
        before = printed("fit", "--config", str(path.with_stem("finetune")))
        left = next(one["dirpath"] for one in callbacks(before).values() if "dirpath" in one)
        assert model["fine_tuned_ckpt"] == f"{left}/best.ckpt"
        assert model["model_name_or_path"] == before["model"]["init_args"]["model_name_or_path"]
        assert callbacks(config)["PGBReport"]["dense_ckpt"] == model["fine_tuned_ckpt"]
        assert config["trainer"]["num_sanity_val_steps"] == -1  # the score of the pruned model
        assert list(callbacks(config))[-1] == "PGBCallback"  # the one that the command line's words go to
        pruning = PGBCallback(**callbacks(config)["PGBCallback"]).config
        assert (pruning.pruning_ratio, pruning.max_groups, pruning.num_permutations) == (0.5, 6, 6)
    else:
        assert model["fine_tuned_ckpt"] is None
        assert "PGBCallback" not in callbacks(config)


@pytest.mark.parametrize("path", GLUE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_tasks_configuration_is_of_one_task(path: Path, printed: Callable[..., dict[str, Any]]) -> None:
    config = printed("fit", "--config", str(path))
    task, stage = path.parent.name, path.stem
    assert config["model"]["init_args"]["task"] == config["data"]["init_args"]["task"] == task
    found = callbacks(config)
    assert found["BestCheckpoint"] == {
        "dirpath": f"runs/{task}/{stage}",
        "monitor": f"val_{get_task(task).metrics[0]}",
    }
    assert found["PredictionWriter"] == {"output_dir": f"runs/{task}/{stage}", "overwrite": True}
    logger = config["trainer"]["logger"]["init_args"]
    assert (logger["save_dir"], logger["name"]) == (f"runs/{task}/logs", stage)
    assert config["seed_everything"] == 42


@pytest.mark.parametrize("path", SQUAD, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_configuration_of_squad_is_of_one_version(path: Path, printed: Callable[..., dict[str, Any]]) -> None:
    config = printed("fit", "--config", str(path))
    version = path.parent.name.removeprefix("v")
    assert config["model"]["init_args"]["version"] == config["data"]["init_args"]["version"] == version
    folder = f"runs/squad-v{version}/{path.stem}"
    monitor = {"1.1": "val_f1", "2.0": "val_best_f1"}[version]
    assert callbacks(config)["BestCheckpoint"] == {"dirpath": folder, "monitor": monitor}
    assert callbacks(config)["AnswerWriter"]["output_dir"] == folder


def test_squad_runs_as_it_is(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = str(tiny_model_folder("bert", max_position_embeddings=128))
    squad_folder(tmp_path / "rows", "2.0")
    overrides = [
        *("--model.model_name_or_path", model, "--data.model_name_or_path", model),
        *("--data.data_dir", str(tmp_path / "rows"), "--data.max_length", "100", "--data.stride", "16"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"),
    ]
    finetune, prune = (str(CONFIGS / "squad" / "v2.0" / f"{stage}.yaml") for stage in ("finetune", "prune"))
    run(["fit", "--config", finetune, *overrides])
    pruned = run(["fit", "--config", prune, *overrides])
    assert is_pruned(find_encoder(pruned.model))
    checkpoint = ["--ckpt_path", "runs/squad-v2.0/prune/last.ckpt"]
    checked = run(["validate", "--config", prune, *overrides, *checkpoint])
    before, after = (float(cli.trainer.callback_metrics["val_best_f1"]) for cli in (pruned, checked))
    assert after == before
    run(["predict", "--config", prune, *overrides, *checkpoint])
    answers = json.loads(Path("runs/squad-v2.0/prune/predictions.json").read_text())
    assert len(answers) == 20


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_read_it_too(command: str, printed: Callable[..., dict[str, Any]]) -> None:
    assert printed(command, "--config", str(GLUE[1]))["model"]["init_args"]["task"] == "cola"


def test_a_users_own_file_and_words_replace_single_settings(
    printed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(f"config: {GLUE[3]}\ndata.init_args.data_dir: rows\ntrainer.max_epochs: 1\n")
    config = printed("fit", "--config", "own.yaml", "--trainer.callbacks.pruning_ratio", "0.7")
    assert (config["data"]["init_args"]["data_dir"], config["trainer"]["max_epochs"]) == ("rows", 1)
    assert config["data"]["init_args"]["task"] == "sst2"
    assert callbacks(config)["PGBCallback"]["pruning_ratio"] == 0.7
    assert len(callbacks(config)) == 5


def test_finetune_prune_validate_and_predict_run_as_they_are(
    tiny_model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, model = tmp_path / "rows", str(tiny_model_folder("bert"))
    folder.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        glue_rows(get_task("rte"), 96 if split == "train" else 21, seed=number).to_parquet(folder / f"{split}.parquet")
    overrides = [
        *("--model.model_name_or_path", model, "--data.model_name_or_path", model, "--data.data_dir", str(folder)),
        *("--data.max_length", "64", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    ]
    finetune, prune = (str(CONFIGS / "glue" / "rte" / f"{stage}.yaml") for stage in ("finetune", "prune"))
    run(["fit", "--config", finetune, *overrides])
    pruned = run(["fit", "--config", prune, *overrides])
    assert is_pruned(find_encoder(pruned.model))
    checkpoint = ["--ckpt_path", "runs/rte/prune/last.ckpt"]
    checked = run(["validate", "--config", prune, *overrides, *checkpoint])
    before, after = (float(cli.trainer.callback_metrics["val_loss"]) for cli in (pruned, checked))
    assert after == pytest.approx(before, rel=1e-5)
    run(["predict", "--config", prune, *overrides, *checkpoint])
    header, *rows = Path("runs/rte/prune/RTE.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    assert [row.split("\t")[0] for row in rows] == [str(number) for number in range(21)]
    assert {row.split("\t")[1] for row in rows} <= {"entailment", "not_entailment"}
