from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from helpers.fakes import print_config

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cli.main import COMMANDS, DESCRIPTIONS, PGBCLI, main, run
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.modules import TextClassification

CONFIGS = Path(__file__).parents[2] / "configs"
FINETUNE = str(CONFIGS / "glue" / "sst2" / "finetune.yaml")
PRUNE = str(CONFIGS / "glue" / "sst2" / "prune.yaml")
LAST = "runs/sst2/finetune/last.ckpt"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, as if the process had no arguments of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pgb"])


@pytest.fixture
def overrides(tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> list[str]:
    """Point a configuration at the tiny model and the made-up rows."""
    model = str(tiny_model_folder("bert"))
    return [
        *("--model.model_name_or_path", model, "--data.model_name_or_path", model),
        *("--data.data_dir", str(glue_folder("sst2")), "--data.max_length", "32"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false", "--trainer.max_epochs", "1"),
    ]


@pytest.fixture
def finetuned(overrides: list[str]) -> PGBCLI:
    """Fine-tune for one epoch from the shipped configuration."""
    return run(
        ["fit", "--config", FINETUNE, *overrides, "--model.learning_rate", "0.001", "--trainer.log_every_n_steps", "2"]
    )


def weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def logged(folder: str) -> dict[str, str]:
    """Read all that a run's CSV log says, the last word of each column."""
    found: dict[str, str] = {}
    with open(Path(folder) / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            found |= {name: value for name, value in row.items() if value}
    return found


# ---- what the commands do -------------------------------------------------------------------------------------


def test_fit_leaves_checkpoints_a_log_and_its_configuration(finetuned: PGBCLI) -> None:
    assert finetuned.trainer.global_step == 4
    files = {str(path.relative_to("runs/sst2")) for path in Path("runs").rglob("*") if path.is_file()}
    assert files == {
        "finetune/best.ckpt",
        "finetune/last.ckpt",
        "logs/finetune/version_0/config.yaml",
        "logs/finetune/version_0/hparams.yaml",
        "logs/finetune/version_0/metrics.csv",
    }
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(logged("runs/sst2/logs/finetune/version_0"))
    saved = yaml.safe_load(Path("runs/sst2/logs/finetune/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["learning_rate"] == 0.001
    assert saved["data"]["init_args"]["max_length"] == 32


def test_fit_resumes_from_a_checkpoint(finetuned: PGBCLI, overrides: list[str]) -> None:
    more = [*overrides, "--trainer.max_epochs", "2", "--ckpt_path", LAST]
    resumed = run(["fit", "--config", FINETUNE, *more])
    assert (resumed.trainer.current_epoch, resumed.trainer.global_step) == (2, 8)
    assert resumed.model.learning_rate == 0.001  # the checkpoint's, not the file's


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_evaluated(command: str, finetuned: PGBCLI, overrides: list[str]) -> None:
    before = float(finetuned.trainer.callback_metrics["val_loss"])
    cli = run([command, "--config", FINETUNE, *overrides, "--ckpt_path", LAST])
    prefix = {"validate": "val", "test": "test"}[command]
    assert float(cli.trainer.callback_metrics[f"{prefix}_loss"]) == pytest.approx(before, rel=1e-5)


def test_predict_runs_from_a_checkpoint(finetuned: PGBCLI, overrides: list[str]) -> None:
    cli = run(["predict", "--config", FINETUNE, *overrides, "--ckpt_path", LAST])
    torch.testing.assert_close(cli.model.state_dict(), weights(LAST))


def test_load_from_checkpoint_reads_what_the_command_wrote(finetuned: PGBCLI) -> None:
    module = TextClassification.load_from_checkpoint(LAST, weights_only=True)
    assert (module.task.name, module.learning_rate) == ("sst2", 0.001)
    torch.testing.assert_close(module.state_dict(), weights(LAST))


def test_the_folder_of_the_first_weights_is_not_needed_again(finetuned: PGBCLI, overrides: list[str]) -> None:
    gone = [*overrides, "--model.model_name_or_path", "no/such/model"]
    cli = run(["validate", "--config", FINETUNE, *gone, "--ckpt_path", LAST])
    assert cli.trainer.callback_metrics["val_loss"] > 0


def test_the_command_line_has_the_last_word_over_a_checkpoint(finetuned: PGBCLI, overrides: list[str]) -> None:
    from_file = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", LAST])
    assert from_file.model.learning_rate == 0.001  # the checkpoint's, not the file's 2e-5
    for given in (["--model.learning_rate", "0.5"], ["--model.init_args.learning_rate=0.5"]):
        assert (
            run(["validate", "--config", FINETUNE, *overrides, *given, "--ckpt_path", LAST]).model.learning_rate == 0.5
        )


def test_a_part_of_a_setting_does_not_replace_a_checkpoints(finetuned: PGBCLI, overrides: list[str]) -> None:
    part = ["--model.hf_config.hidden_size", "12", "--ckpt_path", LAST]
    with pytest.raises(
        SystemExit, match=r"^pgb: --model\.hf_config\.hidden_size would change a part of what ckpt_path"
    ):
        main(["validate", "--config", FINETUNE, *overrides, *part])


@pytest.mark.parametrize("word", ["last", "best", "hpc", "registry", "registry:model:v1", "s3://bucket/a.ckpt"])
def test_words_for_checkpoints_are_left_to_lightning(
    word: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGBCLI, "_run_subcommand", lambda *_: None)
    cli = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", word])
    assert cli.config.validate.ckpt_path == word


def test_a_home_folder_is_looked_into(
    finetuned: PGBCLI, overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cli = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", f"~/{LAST}"])
    assert cli.model.learning_rate == 0.001
    with pytest.raises(SystemExit, match=r"^pgb: ckpt_path='~/runs' is a folder; give a checkpoint"):
        main(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", "~/runs"])


def test_a_python_programs_checkpoint_is_evaluated(overrides: list[str]) -> None:
    model, folder = overrides[1], overrides[5]
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(TextClassification(model, task="sst2"), GLUEDataModule("sst2", model, folder, max_length=32))
    trainer.save_checkpoint("python.ckpt")
    cli = run(["validate", "--config", FINETUNE, *overrides, "--ckpt_path", "python.ckpt"])
    torch.testing.assert_close(cli.model.state_dict(), weights("python.ckpt"))


# ---- pruning --------------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(finetuned: PGBCLI, overrides: list[str]) -> PGBCLI:
    """Prune what `finetuned` left, from the shipped configuration."""
    return run(["fit", "--config", PRUNE, *overrides, "--data.calibration_size", "64"])


def test_prune_starts_from_what_finetune_left(pruned: PGBCLI) -> None:
    (callback,) = (one for one in pruned.trainer.callbacks if isinstance(one, PGBCallback))
    assert callback.plan is not None
    dense, grouped = weights(LAST), weights("runs/sst2/prune/last.ckpt")
    assert sum(weight.numel() for weight in grouped.values()) < sum(weight.numel() for weight in dense.values())
    hparams = torch.load("runs/sst2/prune/last.ckpt", weights_only=True)["hyper_parameters"]
    assert "fine_tuned_ckpt" not in hparams


def test_a_pruned_checkpoint_resumes_and_validates_without_the_dense_one(pruned: PGBCLI, overrides: list[str]) -> None:
    before = float(pruned.trainer.callback_metrics["val_loss"])
    for path in Path("runs/sst2/finetune").glob("*.ckpt"):
        path.unlink()
    last = ["--config", PRUNE, *overrides, "--ckpt_path", "runs/sst2/prune/last.ckpt"]
    checked = run(["validate", *last])
    assert float(checked.trainer.callback_metrics["val_loss"]) == pytest.approx(before, rel=1e-5)
    resumed = run(["fit", *last, "--trainer.max_epochs", "2"])
    assert resumed.trainer.global_step == 8
    shapes = {name: weight.shape for name, weight in resumed.model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in weights("runs/sst2/prune/last.ckpt").items()}


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_pruned_checkpoint_is_entered_bit_for_bit(command: str, pruned: PGBCLI, overrides: list[str]) -> None:
    last = "runs/sst2/prune/last.ckpt"
    cli = run([command, "--config", PRUNE, *overrides, "--ckpt_path", last])
    state = cli.model.state_dict()
    stored = weights(last)
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], value) for name, value in stored.items())


# ---- configurations -------------------------------------------------------------------------------------------


def test_words_on_the_command_line_replace_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    config = print_config(
        capsys, "fit", "--config", PRUNE, "--trainer.callbacks.pruning_ratio", "0.7", "--data.task", "rte"
    )
    assert config["trainer"]["callbacks"][-1]["init_args"]["pruning_ratio"] == 0.7
    assert config["data"]["init_args"]["task"] == "rte"


def test_short_names_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--model", "TextClassification", "--model.model_name_or_path", "minilm-l6", "--data"]
    config = print_config(capsys, "fit", *names, "FilmReviewsDataModule", "--trainer.callbacks+", "PGBCallback")
    assert config["model"]["class_path"] == "pgb_lightning.modules.TextClassification"
    assert config["data"]["class_path"] == "pgb_lightning.datamodules.FilmReviewsDataModule"
    assert config["trainer"]["callbacks"][0]["class_path"] == "pgb_lightning.callbacks.PGBCallback"


@pytest.mark.parametrize("command", [[], ["fit"], ["validate"], ["test"], ["predict"], *([name] for name in COMMANDS)])
def test_help_is_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "--config" in printed
    if not command:
        assert all(f"    {name} " in printed for name in (*DESCRIPTIONS, *COMMANDS))
        assert "Score a model or a checkpoint on the test set." in " ".join(printed.split())
    elif command[0] in DESCRIPTIONS:
        assert printed.startswith(f"usage: pgb {command[0]} --config FILE [--ckpt_path FILE] [--SETTING VALUE ...]")


def test_a_speedup_takes_the_place_of_the_files_ratio(capsys: pytest.CaptureFixture[str], overrides: list[str]) -> None:
    words = ["fit", "--config", PRUNE, *overrides, "--model.fine_tuned_ckpt", "null"]
    faster = ["--trainer.callbacks.target_speedup", "2.0"]
    with pytest.raises(SystemExit, match=r"are two targets; give one of them, and None for the other .*: null"):
        main([*words, *faster])
    config = print_config(capsys, *words, "--trainer.callbacks.pruning_ratio", "null", *faster)
    settings = config["trainer"]["callbacks"][-1]["init_args"]
    assert (settings["pruning_ratio"], settings["target_speedup"]) == (None, 2.0)


def test_bash_completes_commands_settings_and_files() -> None:
    pytest.importorskip("shtab")
    # In a process of its own: what is completed grows with all the subclasses that tests have made here.
    program = "import sys; sys.argv[0] = 'pgb'; from pgb_lightning.cli.main import main; main()"
    words = [sys.executable, "-c", program, "--print_completion=shtab-bash"]
    Path("completion.bash").write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    Path("own.yaml").touch()
    assert complete("pgb", "ex") == ["export"]
    assert complete("pgb", "fit", "--trainer.max_e") == ["--trainer.max_epochs"]
    assert "--trainer.callbacks.target_speedup" in complete("pgb", "fit", "--trainer.callbacks.target")
    assert "--model.fine_tuned_ckpt" in complete("pgb", "fit", "--model.fine")
    assert complete("pgb", "fit", "--config", "ow") == ["own.yaml"]
    assert complete("pgb", "export", "--format", "hug") == ["huggingface"]


def complete(*words: str) -> list[str]:
    """Press Tab in bash after some words."""
    script = """
    source completion.bash
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
    _shtab_pgb "$1" "${@: -1}" "${@: -2:1}"
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    return sorted(set(done.stdout.split()))


def test_a_users_own_classes_are_named_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_classes.py").write_text(
        """
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
    )
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    trainer = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    config = {
        "model": {"class_path": "own_classes.OwnModule", "init_args": {"width": 3}},
        "data": {"class_path": "own_classes.OwnData", "init_args": {"width": 3}},
        "trainer": {**trainer, "default_root_dir": str(tmp_path)},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "own.yaml"])  # finds classes in the folder one is in
    cli = run(["fit", "--config", "own.yaml"])
    assert cli.trainer.global_step == 2
    cli.trainer.save_checkpoint("own.ckpt")
    more = run(["fit", "--config", "own.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "own.ckpt"])
    assert more.trainer.global_step == 4
    bare = {"class_path": "own_classes.Bare"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump({**config, "model": bare}))
    classes = import_module("own_classes")
    program = L.Trainer(**trainer)
    program.fit(classes.Bare(), classes.OwnData(3))
    program.save_checkpoint("bare.ckpt")
    again = run(["fit", "--config", "bare.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "bare.ckpt"])
    assert again.trainer.global_step == 4


# ---- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (FINETUNE, ["--model.task", "imdb"], r"^pgb: task='imdb' is not a GLUE task; choose one of: cola, "),
        (FINETUNE, ["--data.batch_size", "0"], r"^pgb: batch_size=0 is out of range"),
        (FINETUNE, ["--data.task", "mnli"], r"train\.parquet has no column 'premise', 'hypothesis'"),
        (PRUNE, [], r"^pgb: fine_tuned_ckpt='runs/sst2/finetune/best\.ckpt' is not a file"),
        (FINETUNE, ["--ckpt_path", "nobody.ckpt"], r"^pgb: ckpt_path='nobody\.ckpt' is not there; give a checkpoint"),
        (FINETUNE, ["--ckpt_path", "."], r"^pgb: ckpt_path='\.' is a folder; give a checkpoint"),
        (
            FINETUNE,
            ["--model.model_name_or_path", "no/bo/dy"],
            r"^pgb: model_name_or_path='no/bo/dy': its configuration cannot be read; give",
        ),
        (
            PRUNE,
            ["--model.fine_tuned_ckpt", "null", "--trainer.callbacks.pruning_ratio", "1.5"],
            r"^pgb: .*pruning_ratio=1\.5",
        ),
    ],
)
def test_a_wrong_setting_ends_in_one_line(config: str, words: list[str], message: str, overrides: list[str]) -> None:
    with pytest.raises(SystemExit, match=message) as stop:
        main(["fit", "--config", config, *overrides, *words])
    assert "\n" not in stop.value.code


def test_the_parsers_own_complaints_stay(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", FINETUNE, *overrides, "--data.no_such_setting", "1"])
    assert stop.value.code == 2
    assert "no_such_setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--trainer.callbacks.pruning_ration", "0.3"],
            [
                "'pruning_ration' is not accepted",
                "Did you mean 'pruning_ratio'?",
                "--trainer.callbacks.help PGBCallback",
            ],
        ),
        (["--trainer.callbacks.pruning_ratio", "lots"], ["pruning_ratio", "Expected a <class 'float'>", "lots"]),
        (["--config", "no/such.yaml"], ["File does not exist: ", "no/such.yaml"]),
        (["--model", "NoSuchModule"], ["NoSuchModule"]),
    ],
)
def test_a_wrong_setting_is_named(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", PRUNE, *words])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: pgb fit --config FILE")
    assert all(part in said for part in expected), said


def test_benchmark_is_a_command_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"pgb: batch_sizes=\[0\] is out of range"):
        main(["benchmark", "--batch_sizes", "[0]", "--out_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"pgb: plan='nowhere.json' cannot be read as a plan"):
        main(["benchmark", "--plan", "nowhere.json"])
