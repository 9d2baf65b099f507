"""Command-line arguments: overrides, short names, help, completion, and messages about invalid ones."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import lightning as L
import pytest
import yaml
from helpers.fakes import print_config

from pgb_lightning.cli.main import COMMANDS, DESCRIPTIONS, main, run

FINETUNE = "glue/sst2/finetune"
PRUNE = "glue/sst2/prune"


def test_arguments_replace_settings_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    config = print_config(
        capsys, "fit", "--config", PRUNE, "--trainer.callbacks.pruning_ratio", "0.7", "--data.task", "rte"
    )
    assert config["trainer"]["callbacks"][-1]["init_args"]["pruning_ratio"] == 0.7
    assert config["data"]["init_args"]["task"] == "rte"


def test_classes_of_the_package_have_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--model", "TextClassification", "--model.model_name_or_path", "minilm-l6", "--data"]
    config = print_config(capsys, "fit", *names, "FilmReviewsDataModule", "--trainer.callbacks+", "PGBCallback")
    assert config["model"]["class_path"] == "pgb_lightning.modules.TextClassification"
    assert config["data"]["class_path"] == "pgb_lightning.datamodules.FilmReviewsDataModule"
    assert config["trainer"]["callbacks"][0]["class_path"] == "pgb_lightning.callbacks.PGBCallback"


@pytest.mark.parametrize("command", [[], ["fit"], ["predict"], *([name] for name in COMMANDS)])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "--config" in printed
    if not command:
        assert all(f"    {name} " in printed for name in (*DESCRIPTIONS, *COMMANDS))
        assert DESCRIPTIONS["test"] in " ".join(printed.split())
        assert "glue/sst2/prune" in printed
    elif command[0] in DESCRIPTIONS:
        assert printed.startswith(f"usage: pgb {command[0]} --config ")


def test_target_speedup_replaces_the_ratio_of_the_file(
    capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    args = ["fit", "--config", PRUNE, *overrides, "--model.fine_tuned_ckpt", "null"]
    faster = ["--trainer.callbacks.target_speedup", "2.0"]
    with pytest.raises(SystemExit, match=r"pruning_ratio=0\.5 and target_speedup=2\.0"):
        main([*args, *faster])
    config = print_config(capsys, *args, "--trainer.callbacks.pruning_ratio", "null", *faster)
    settings = config["trainer"]["callbacks"][-1]["init_args"]
    assert (settings["pruning_ratio"], settings["target_speedup"]) == (None, 2.0)


@pytest.mark.slow
def test_bash_completes_commands_settings_and_files() -> None:
    pytest.importorskip("shtab")
    # In its own process, because the script would include all subclasses that tests have defined in this one.
    program = "import sys; sys.argv[0] = 'pgb'; from pgb_lightning.cli.main import main; main()"
    args = [sys.executable, "-c", program, "--print_completion=shtab-bash"]
    Path("completion.bash").write_text(subprocess.run(args, capture_output=True, text=True, check=True).stdout)
    Path("own.yaml").touch()
    completed = complete(
        "pgb ex",
        "pgb fit --trainer.max_e",
        "pgb fit --trainer.callbacks.target",
        "pgb fit --model.fine",
        "pgb fit --config ow",
        "pgb export --format hug",
    )
    assert completed[0] == {"export"}
    assert completed[1] == {"--trainer.max_epochs"}
    assert "--trainer.callbacks.target_speedup" in completed[2]
    assert "--model.fine_tuned_ckpt" in completed[3]
    assert completed[4] == {"own.yaml"}
    assert completed[5] == {"huggingface"}


def complete(*lines: str) -> list[set[str]]:
    """Return what the Tab key offers in bash after each command line."""
    script = """
    source completion.bash
    for line in "$@"; do
        COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="$line"; COMP_POINT=${#COMP_LINE}
        COMPREPLY=()
        _shtab_pgb pgb "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
        echo "${COMPREPLY[*]}"
    done
    """
    done = subprocess.run(["bash", "-c", script, "bash", *lines], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


OWN_CLASSES = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

class OwnModule(L.LightningModule):
    def __init__(self, width: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Bare(OwnModule):
    def __init__(self):
        super().__init__(3)
        self.save_hyperparameters({"note": 1})

class OwnData(L.LightningDataModule):
    def __init__(self, width: int = 2):
        super().__init__()
        self.width = width
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, self.width)), batch_size=2)
"""


def test_users_own_classes_are_named_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classes.py").write_text(OWN_CLASSES)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    config = {
        "model": {"class_path": "own_classes.OwnModule", "init_args": {"width": 3}},
        "data": {"class_path": "own_classes.OwnData", "init_args": {"width": 3}},
        "trainer": {**trainer, "default_root_dir": str(tmp_path)},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "own.yaml"])  # finds classes in the working directory
    cli = run(["fit", "--config", "own.yaml"])
    assert cli.trainer.global_step == 2
    cli.trainer.save_checkpoint("own.ckpt")
    resumed = run(["fit", "--config", "own.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "own.ckpt"])
    assert resumed.trainer.global_step == 4
    bare = {"class_path": "own_classes.Bare"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump({**config, "model": bare}))
    classes = import_module("own_classes")
    program = L.Trainer(**trainer)
    program.fit(classes.Bare(), classes.OwnData(3))
    program.save_checkpoint("bare.ckpt")
    resumed = run(["fit", "--config", "bare.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "bare.ckpt"])
    assert resumed.trainer.global_step == 4


# ---- invalid arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        (FINETUNE, ["--model.task", "imdb"], r"^pgb: task='imdb'.* cola, "),
        (FINETUNE, ["--data.batch_size", "0"], r"^pgb: batch_size=0"),
        (FINETUNE, ["--data.task", "mnli"], r"train\.parquet .*'premise', 'hypothesis'"),
        (PRUNE, [], r"^pgb: fine_tuned_ckpt='runs/sst2/finetune/best\.ckpt'"),
        (FINETUNE, ["--ckpt_path", "missing.ckpt"], r"^pgb: ckpt_path='missing\.ckpt' does not exist"),
        (FINETUNE, ["--ckpt_path", "."], r"^pgb: ckpt_path='\.' is a folder"),
        (FINETUNE, ["--model.model_name_or_path", "no/bo/dy"], r"^pgb: model_name_or_path='no/bo/dy'"),
        (
            PRUNE,
            ["--model.fine_tuned_ckpt", "null", "--trainer.callbacks.pruning_ratio", "1.5"],
            r"^pgb: .*pruning_ratio=1\.5",
        ),
        ("glue/sst-2/prune", [], r"^pgb: config='glue/sst-2/prune'.*'glue/sst2/prune'"),
    ],
)
def test_an_invalid_setting_ends_in_one_line(config: str, args: list[str], message: str, overrides: list[str]) -> None:
    with pytest.raises(SystemExit, match=message) as stop:
        main(["fit", "--config", config, *overrides, *args])
    assert "\n" not in stop.value.code


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.no_such_setting", "1"], ["no_such_setting"]),
        (
            ["--trainer.callbacks.pruning_ration", "0.3"],
            ["'pruning_ration'", "'pruning_ratio'", "--trainer.callbacks.help PGBCallback"],
        ),
        (["--trainer.callbacks.pruning_ratio", "lots"], ["pruning_ratio", "float", "lots"]),
        (["--model", "NoSuchModule"], ["NoSuchModule"]),
    ],
)
def test_errors_of_the_parser_name_the_setting(
    args: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", PRUNE, *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: pgb fit --config ")
    assert all(part in error for part in expected), error


def test_benchmark_reports_invalid_settings_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^pgb: batch_sizes=\[0\]"):
        main(["benchmark", "--batch_sizes", "[0]", "--out_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^pgb: plan='nowhere.json'"):
        main(["benchmark", "--plan", "nowhere.json"])


@pytest.mark.parametrize(
    "args", [["report", "--path=~/none.json"], ["export", "--output_dir=out", "--ckpt_path=~/none.ckpt"]]
)
def test_the_home_folder_is_expanded_where_shells_do_not(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=rf"^pgb: .*{re.escape(str(tmp_path / 'none'))}"):
        main(args)


def test_a_command_without_a_trainer_must_come_first() -> None:
    with pytest.raises(SystemExit, match=r"^pgb: benchmark "):
        main(["--config", "{}", "benchmark", "--out_dir", "."])
