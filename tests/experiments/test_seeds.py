"""The experiment over seeds: scores are written to files, reused, and averaged in tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fakes import squad_folder

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import seeds
from pgb_lightning.experiments.task_setup import TaskSetup
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned

pytestmark = pytest.mark.usefixtures("restored_threads")

Run = Callable[..., None]


@pytest.fixture(scope="module")
def run_sst2(tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> Run:
    """Run the experiment on a tiny model and SST-2 at one ratio."""

    def run(out_dir: Path, **settings: Any) -> None:
        seeds.run(
            task="sst2",
            out_dir=str(out_dir),
            data_dir=str(glue_folder("sst2", train=64, validation=40)),
            model_name_or_path=str(tiny_model_folder("bert")),
            ratios=(0.5,),
            max_length=32,
            **settings,
        )

    return run


@pytest.fixture(scope="module")
def measured(run_sst2: Run, tmp_path_factory: pytest.TempPathFactory, restored_threads: None) -> Path:
    """Return a folder with results of the paper preset for two seeds, and of the default preset for one."""
    folder = tmp_path_factory.mktemp("seeds")
    run_sst2(folder, seeds=(0, 1), presets=("paper",))
    run_sst2(folder, seeds=(0,), presets=("default",))
    return folder


def read(folder: Path, name: str, seed: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"seed{seed}" / f"{name}.json").read_text())
    return result


def metrics_of_tables(printed: str) -> list[str]:
    return [line.split(",")[0].strip() for line in printed.splitlines() if ", mean ±" in line]


def test_scores_and_pruned_checkpoints_are_written(measured: Path) -> None:
    assert len(list(measured.glob("seed*/*.json"))) == 2 + 3
    for seed, preset in ((0, "paper"), (1, "paper"), (0, "default")):
        result = read(measured, f"{preset}-0.5", seed)
        assert abs(result["removed"] - 0.5) <= 0.01
        assert all(0 <= result[key] <= 1 for key in ("before", "after"))
        module = TextClassification.load_from_checkpoint(measured / f"seed{seed}" / f"{preset}-0.5.ckpt")
        assert is_pruned(find_encoder(module))


def test_existing_results_are_reused_and_averaged(
    measured: Path, run_sst2: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "train", None)  # calling it would fail
    run_sst2(measured, seeds=(0, 1), presets=("paper",))
    printed = capsys.readouterr().out
    assert "over 2 seeds" in printed
    mean = 50 * sum(read(measured, "paper-0.5", seed)["after"] for seed in (0, 1))
    assert f"{mean:.1f} ±" in printed


def test_baselines_are_measured_from_the_same_dense_model(
    measured: Path, run_sst2: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "copy"))
    baselines = ("kwon", "magnitude", "top-layers")
    run_sst2(folder, seeds=(0,), presets=baselines)
    printed = capsys.readouterr().out
    for name in baselines:
        assert name in printed
        result = read(folder, f"{name}-0.5")
        assert result["removed"] == pytest.approx(0.5, abs=0.01)
        assert {"val_loss", "val_accuracy"} <= result["scores"]["before"].keys()
    weights = torch.load(folder / "seed0" / "magnitude-0.5.ckpt", weights_only=True)["state_dict"]
    matrices = [value for name, value in weights.items() if ".layer." in name and value.ndim == 2]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    assert zeros / sum(map(torch.numel, matrices)) == pytest.approx(0.5, abs=1e-3)  # after training


def test_results_with_and_without_distillation_need_different_folders(
    measured: Path, run_sst2: Run, tmp_path: Path
) -> None:
    shutil.copytree(measured / "seed0", tmp_path / "seed0", ignore=shutil.ignore_patterns("*-0.5.*"))
    settings: dict[str, Any] = {"seeds": (0,), "presets": ("default", "kwon")}
    run_sst2(tmp_path, distillation=True, **settings)
    for name in settings["presets"]:
        assert read(tmp_path, f"{name}-0.5")["scores"]["after"]["train_distillation"] > 0
    assert json.loads((tmp_path / "settings.json").read_text())["distillation"] is True
    with pytest.raises(ValueError, match=r"out_dir=.*distillation=None, not True"):
        run_sst2(tmp_path, **settings)


def test_there_is_a_table_for_every_validation_set(
    tmp_path: Path,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seeds.run(
        task="mnli",
        out_dir=str(tmp_path),
        data_dir=str(glue_folder("mnli", train=64, validation=40)),
        model_name_or_path=str(tiny_model_folder("bert")),
        seeds=(0,),
        ratios=(0.5,),
        presets=("default",),
        epochs=2,
        max_length=64,
    )
    names = ["val_accuracy", "val_mismatched_accuracy"]
    assert metrics_of_tables(capsys.readouterr().out) == names
    pruned = read(tmp_path, "default-0.5")
    assert all(pruned["scores"]["before"][name] >= 0 for name in names)
    assert pruned["before"] == pruned["scores"]["before"][names[0]]
    assert torch.load(tmp_path / "seed0" / "dense.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(tmp_path / "seed0" / "default-0.5.ckpt", weights_only=True)["epoch"] == 1


def test_squad_is_measured_in_percent(
    tmp_path: Path, tiny_model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    seeds.run(
        task="squad_v2",
        out_dir=str(tmp_path / "out"),
        data_dir=str(squad_folder(tmp_path / "data", "2.0")),
        model_name_or_path=str(tiny_model_folder("bert", max_position_embeddings=128)),
        seeds=(0,),
        ratios=(0.5,),
        presets=("default",),
        max_length=96,
        data_options={"stride": 16, "group_by_length": True},
    )
    printed = capsys.readouterr().out
    assert metrics_of_tables(printed) == list(TaskSetup.of("squad_v2").metrics)
    scores = read(tmp_path / "out", "default-0.5")["scores"]["after"]
    assert f"{scores['val_f1']:.1f} " in printed
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["data_options"]["group_by_length"]


@pytest.mark.parametrize(
    ("task", "options", "metrics", "percent"),
    [
        ("squad", {"version": "1.1"}, ("val_f1", "val_exact_match"), True),
        (
            "squad_v2",
            {"version": "2.0"},
            ("val_f1", "val_exact_match", "val_HasAns_f1", "val_NoAns_f1", "val_best_f1"),
            True,
        ),
        ("cola", {"task": "cola"}, ("val_matthews",), False),
        ("mrpc", {"task": "mrpc"}, ("val_accuracy", "val_f1"), False),
    ],
)
def test_a_task_determines_options_and_metrics(
    task: str, options: dict[str, str], metrics: tuple[str, ...], percent: bool
) -> None:
    setup = TaskSetup.of(task)
    assert (setup.options, setup.metrics, setup.percent) == (options, metrics, percent)


def test_old_results_without_all_scores_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, score in enumerate((0.8, 0.9)):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        pruned = {"seed": seed, "preset": "paper", "ratio": 0.3, "removed": 0.301, "before": score, "after": score}
        (folder / "dense.json").write_text(json.dumps({"seed": seed, "dense": score}))
        (folder / "paper-0.3.json").write_text(json.dumps(pruned))
    seeds.run("mrpc", str(tmp_path), seeds=(0, 1), ratios=(0.3,), presets=("paper",))
    first, second = capsys.readouterr().out.split("val_f1")
    assert "over 2 seeds; dense 85.0 ± 7.1" in " ".join(first.split())
    assert "85.0 ± 7.1" in first.splitlines()[-3]
    assert "over 0 seeds; dense -" in " ".join(second.split())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"presets": ("best",)}, r"presets .*'best'.*'default', .*'kwon'"),
        ({"ratios": (0.5, 1.0)}, r"pruning_ratio=1\.0"),
        ({"epochs": 0}, "epochs=0 .*1 or more"),
        ({"refinetuning_epochs": 0}, "refinetuning_epochs=0 .*1 or more"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 .*above 0"),
        ({"refinetuning_learning_rate": -1e-5}, "refinetuning_learning_rate=-1e-05"),
        ({"presets": ("default", "top-layers"), "distillation": True}, "'top-layers'.*distillation=False"),
        ({"task": "imdb"}, "cola, sst2.*squad, squad_v2"),
        ({"data_options": {"group_by_lenght": True}}, "data_options .*'group_by_lenght'"),
        ({"data_options": {"seed": 1}}, "data_options .*'seed'"),
        ({"data_options": {"task": "cola"}}, "data_options .*'task'"),
        ({"data_options": {"version": "2.0"}}, "data_options .*'version'"),
        ({"max_length": 64, "data_options": {"max_length": 32}}, "data_options .*'max_length'"),
    ],
)
def test_invalid_settings_raise_before_a_folder_is_made(settings: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        seeds.run(**{"task": "squad", "out_dir": str(tmp_path / "new"), **settings})
    assert not (tmp_path / "new").exists()


def test_a_folder_has_results_of_one_set_of_settings(tmp_path: Path) -> None:
    seeds.run("mrpc", str(tmp_path), seeds=())
    with pytest.raises(ValueError, match=r"out_dir=.*epochs=3, not 1; data_options=.*64}, not {.*128}"):
        seeds.run("mrpc", str(tmp_path), seeds=(), epochs=3, max_length=64)
