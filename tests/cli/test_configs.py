"""The packaged configurations: their values, that they run, and how they are found by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import glue_rows, print_config, squad_folder
from helpers.text_tables import reviews, write
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cli.configs import find_config, packaged_configs, resolve_config_line
from pgb_lightning.cli.main import run
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.pruned_checkpoint import read_module
from pgb_lightning.glue_tasks import TASKS, get_task
from pgb_lightning.surgery.checks import is_pruned

STAGES = ("finetune", "prune", "recover")
DEMO = [f"demo/{stage}" for stage in STAGES]
SQUAD = [f"squad/{version}/{stage}" for version in ("v1.1", "v2.0") for stage in STAGES]
TABLES = ["texts/finetune", "words/finetune"]
GLUE = [f"glue/{task}/{stage}" for task in TASKS for stage in STAGES]

Config = dict[str, Any]


@pytest.fixture(scope="module")
def parsed() -> dict[str, Config]:
    """Keep parsed configurations for the whole module, because parsing takes a third of a second."""
    return {}


@pytest.fixture
def parse(capsys: pytest.CaptureFixture[str], parsed: dict[str, Config]) -> Callable[[str], Config]:
    """Return what ``pgb fit --print_config`` prints for a configuration."""

    def parse(name: str) -> Config:
        if name not in parsed:
            parsed[name] = print_config(capsys, "fit", "--config", name)
        return parsed[name]

    return parse


def callbacks(config: Config) -> dict[str, Config]:
    """Return each callback's arguments by its class, in the order of the file."""
    return {one["class_path"].rpartition(".")[2]: one.get("init_args", {}) for one in config["trainer"]["callbacks"]}


# ---- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GLUE, *SQUAD, *DEMO])
def test_a_configuration_has_the_values_of_the_paper(name: str, parse: Callable[[str], Config]) -> None:
    config = parse(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (data["batch_size"], data["eval_batch_size"], data["max_length"]) == (
        (16, 32, 384) if name in SQUAD else (32, 128, 128)
    )
    recovers = name.endswith("/recover")
    assert model["learning_rate"] == (1e-4 if recovers else 3e-5 if name in SQUAD else 2e-5)
    assert config["seed_everything"] == 42
    assert "ExactResume" in callbacks(config)
    assert model["model_name_or_path"] == data["model_name_or_path"]
    has_few_rows = name.startswith(("glue/cola/", "glue/mrpc/", "glue/stsb/", "glue/rte/", "glue/wnli/", "demo/"))
    epochs = 10 if recovers and has_few_rows else 1 if name in DEMO and not recovers else 3
    assert config["trainer"]["max_epochs"] == epochs
    assert data.get("calibration_size") in (None, 2048)
    folder, _, stage = name.rpartition("/")
    assert ("Distillation" in callbacks(config)) is recovers
    if stage in ("prune", "recover"):
        before = parse(f"{folder}/finetune")
        output = callbacks(before)["BestCheckpoint"]["dirpath"]
        assert model["fine_tuned_ckpt"] == f"{output}/best.ckpt"
        assert model["model_name_or_path"] == before["model"]["init_args"]["model_name_or_path"]
        assert callbacks(config)["PGBReport"]["dense_ckpt"] == model["fine_tuned_ckpt"]
        assert config["trainer"]["num_sanity_val_steps"] == -1  # the score of the pruned model
        assert list(callbacks(config))[-1] == "PGBCallback"  # command-line arguments go to the last callback
        pruning = PGBCallback(**callbacks(config)["PGBCallback"]).config
        assert (pruning.pruning_ratio, pruning.max_groups, pruning.num_permutations) == (0.5, 6, 6)
    else:
        assert model["fine_tuned_ckpt"] is None
        assert "PGBCallback" not in callbacks(config)


def best_checkpoint(folder: str, monitor: str, stage: str) -> dict[str, Any]:
    """Return the settings of BestCheckpoint, which keeps the pruned weights if recovery makes them worse."""
    return {"dirpath": folder, "monitor": monitor, "mode": None, "before_training": stage == "recover"}


@pytest.mark.parametrize("name", GLUE)
def test_a_glue_configuration_is_for_one_task(name: str, parse: Callable[[str], Config]) -> None:
    config = parse(name)
    _, task, stage = name.split("/")
    assert config["model"]["init_args"]["task"] == config["data"]["init_args"]["task"] == task
    folder, monitor = f"runs/{task}/{stage}", f"val_{get_task(task).metrics[0]}"
    assert callbacks(config)["BestCheckpoint"] == best_checkpoint(folder, monitor, stage)
    assert callbacks(config)["PredictionWriter"] == {"output_dir": folder, "overwrite": True}
    logger = config["trainer"]["logger"]["init_args"]
    assert (logger["save_dir"], logger["name"]) == (f"runs/{task}/logs", stage)


@pytest.mark.parametrize("name", SQUAD)
def test_a_squad_configuration_is_for_one_version(name: str, parse: Callable[[str], Config]) -> None:
    config = parse(name)
    _, version, stage = name.replace("/v", "/").split("/")
    assert config["model"]["init_args"]["version"] == config["data"]["init_args"]["version"] == version
    folder = f"runs/squad-v{version}/{stage}"
    monitor = {"1.1": "val_f1", "2.0": "val_best_f1"}[version]
    assert callbacks(config)["BestCheckpoint"] == best_checkpoint(folder, monitor, stage)
    assert callbacks(config)["AnswerWriter"]["output_dir"] == folder


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_other_commands_read_the_same_files(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_config(capsys, command, "--config", "glue/cola/prune")["model"]["init_args"]["task"] == "cola"


# ---- names ------------------------------------------------------------------------------------------------------


def test_all_tasks_and_stages_are_packaged() -> None:
    assert set(packaged_configs()) == {*DEMO, *GLUE, *SQUAD, *TABLES, "glue/base", "squad/base"}


def test_a_name_may_end_in_yaml_and_a_path_takes_precedence(tmp_path: Path) -> None:
    packaged = str(packaged_configs()["demo/prune"])
    assert find_config("demo/prune") == find_config("demo/prune.yaml") == find_config(packaged) == packaged
    (tmp_path / "demo" / "prune").mkdir(parents=True)  # a folder is no configuration
    assert find_config("demo/prune") == packaged
    (tmp_path / "demo" / "prune.yaml").touch()
    assert find_config("demo/prune.yaml") == "demo/prune.yaml"
    assert find_config("demo/prune") == packaged


@pytest.mark.parametrize("value", ["-", "{trainer: {max_epochs: 1}}", "trainer.max_epochs: 1", "s3://bucket/a.yaml"])
def test_values_that_are_no_names_are_left_to_the_parser(value: str) -> None:
    assert find_config(value) == value


def test_an_unknown_name_lists_near_misses_and_all_names() -> None:
    with pytest.raises(MisconfigurationException, match=r"config='glue/sst/prune'.*'glue/sst2/prune'") as caught:
        find_config("glue/sst/prune")
    message = str(caught.value)
    assert all(name in message for name in (*DEMO, *GLUE, *SQUAD))
    assert "base" not in message
    with pytest.raises(MisconfigurationException, match=r"config='no/such\.yaml'"):
        find_config("no/such.yaml")


def test_several_configurations_and_arguments_are_combined(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("trainer:\n  max_epochs: 1\n")
    config = print_config(
        *(capsys, "fit", "--config", "squad/v2.0/finetune", "--config=short.yaml"),
        *("-c", "trainer: {max_steps: 7}", "--data.batch_size", "4"),
    )
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (1, 7)
    assert config["data"]["init_args"]["batch_size"] == 4
    assert config["data"]["init_args"]["version"] == "2.0"


@pytest.mark.parametrize("base", ["glue/sst2/prune", str(packaged_configs()["glue/sst2/prune"])])
def test_a_file_of_the_user_extends_a_packaged_one(
    base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.yaml").write_text(
        f"config: {base}  # a name or a path\ndata.init_args.data_dir: rows\ntrainer.max_epochs: 1\n"
    )
    config = print_config(capsys, "fit", "--config", "own/own.yaml", "--trainer.callbacks.pruning_ratio", "0.7")
    assert (config["data"]["init_args"]["data_dir"], config["trainer"]["max_epochs"]) == ("rows", 1)
    assert config["data"]["init_args"]["task"] == "sst2"
    assert callbacks(config)["PGBCallback"]["pruning_ratio"] == 0.7
    assert len(callbacks(config)) == 5


def test_only_names_of_packaged_configurations_are_replaced_in_files(tmp_path: Path) -> None:
    path = packaged_configs()["glue/base"]
    assert resolve_config_line('a: 1\nconfig: "glue/base.yaml"\n') == f"a: 1\nconfig: '{path}'\n"
    for text in ("config: other.yaml\n", "model:\n  config: glue/base\n", "config: {a: 1}\n", "# config: glue/base\n"):
        assert resolve_config_line(text) == text
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "base").touch()
    assert resolve_config_line("config: glue/base") == "config: glue/base"


# ---- runs -------------------------------------------------------------------------------------------------------


def run_all_commands(config: str, output: str, metric: str, overrides: list[str]) -> None:
    """Fine-tune, prune, validate and predict with packaged configurations, and compare the scores before and after."""
    run(["fit", "--config", f"{config}/finetune", *overrides])
    stage = output.rpartition("/")[2]
    pruned = run(["fit", "--config", f"{config}/{stage}", *overrides])
    assert is_pruned(find_encoder(pruned.model))
    args = ["--config", f"{config}/{stage}", *overrides, "--ckpt_path", f"{output}/last.ckpt"]
    validated = run(["validate", *args])
    before, after = (float(cli.trainer.callback_metrics[metric]) for cli in (pruned, validated))
    assert after == pytest.approx(before, rel=1e-5)
    run(["predict", *args])


@pytest.mark.slow
def test_squad_runs_with_the_packaged_configurations(tiny_model_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = str(tiny_model_folder("bert", max_position_embeddings=128))
    squad_folder(tmp_path / "rows", "2.0")
    overrides = [
        *("--model.model_name_or_path", model, "--data.model_name_or_path", model),
        *("--data.data_dir", str(tmp_path / "rows"), "--data.max_length", "100", "--data.stride", "16"),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"),
    ]
    run_all_commands("squad/v2.0", "runs/squad-v2.0/prune", "val_best_f1", overrides)
    answers = json.loads(Path("runs/squad-v2.0/prune/predictions.json").read_text())
    assert len(answers) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_an_encoder_is_fine_tuned_on_a_table(
    name: str, tiny_model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint can be pruned by ``pgb prune``, as the configuration says."""
    monkeypatch.chdir(tmp_path)
    model, labels = str(tiny_model_folder("bert")), 3
    if name == "texts/finetune":
        rows = write(tmp_path / "rows.csv", reviews(label=lambda row: "abc"[row % 3]))
    else:
        rows = write(tmp_path / "rows.jsonl", [{"tokens": ["a", "film"], "ner_tags": ["O", "B-x"]} for _ in range(40)])
        labels = 2
    settings = {
        "data.data": rows,
        "model.num_labels": labels,
        "model.model_name_or_path": model,
        "data.model_name_or_path": model,
        "data.max_length": 32,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
    }
    run(["fit", "--config", name, *(part for key, value in settings.items() for part in (f"--{key}", str(value)))])
    checkpoint = tmp_path / "runs" / name / "best.ckpt"
    head = read_module(checkpoint).model.config.id2label
    assert set(head.values()) == ({"a", "b", "c"} if labels == 3 else {"O", "B-x"})


@pytest.mark.parametrize("stage", ["prune", "recover"])
def test_rte_runs_with_the_packaged_configurations(
    stage: str, tiny_model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, model = tmp_path / "rows", str(tiny_model_folder("bert"))
    folder.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        glue_rows(get_task("rte"), 96 if split == "train" else 21, seed=number).to_parquet(folder / f"{split}.parquet")
    overrides = [
        *("--model.model_name_or_path", model, "--data.model_name_or_path", model, "--data.data_dir", str(folder)),
        *("--data.max_length", "64", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", "1"),
    ]
    run_all_commands("glue/rte", f"runs/rte/{stage}", "val_loss", overrides)
    header, *rows = Path(f"runs/rte/{stage}/RTE.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    assert [row.split("\t")[0] for row in rows] == [str(number) for number in range(21)]
    assert {row.split("\t")[1] for row in rows} <= {"entailment", "not_entailment"}
