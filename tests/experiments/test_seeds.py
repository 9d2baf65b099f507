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
from pgb_lightning.experiments import calibrated_model, seeds
from pgb_lightning.experiments.task_setup import TaskSetup
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned

pytestmark = pytest.mark.usefixtures("restored_threads")

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run_sst2(tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]) -> Run:
    """Run the experiment on a tiny model and SST-2."""

    def run(out_dir: Path, ratios: tuple[float, ...] = (0.5,), **settings: Any) -> list[dict[str, Any]]:
        return seeds.run(
            task="sst2",
            out_dir=str(out_dir),
            data_dir=str(glue_folder("sst2", train=64, validation=40)),
            model_name_or_path=str(tiny_model_folder("bert", initializer_range=0.2)),
            ratios=ratios,
            max_length=32,
            **settings,
        )

    return run


@pytest.fixture(scope="module")
def measured(run_sst2: Run, tmp_path_factory: pytest.TempPathFactory, restored_threads: None) -> Path:
    """Return a folder with results of the paper preset for two seeds, and of the default preset for one."""
    folder = tmp_path_factory.mktemp("seeds")
    run_sst2(folder, seeds=(0, 1), presets=("paper",))
    run_sst2(folder, seeds=(0,), presets=("default",), recoveries=("distill",), keep_checkpoints=True)
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def read(folder: Path, method: str, seed: int = 0) -> dict[str, Any]:
    found = [one for one in records(folder) if (one["method"], one["seed"]) == (method, seed)]
    assert len(found) == 1
    result: dict[str, Any] = found[0]
    return result


def metrics_of_tables(printed: str) -> list[str]:
    return [line.split(",")[0].strip() for line in printed.splitlines() if ", mean ±" in line]


def test_every_cell_is_one_line_with_scores_size_time_and_memory(measured: Path) -> None:
    assert len((measured / "results.jsonl").read_text().splitlines()) == 2 + 3
    dense = read(measured, "dense")
    assert dense["after"]["divergence"] == 0
    assert dense["finetuning"]["seconds"] > 0
    for seed, method in ((0, "paper"), (1, "paper"), (0, "default")):
        result = read(measured, method, seed)
        assert result["removed"] == pytest.approx(0.5, abs=0.01)
        assert result["parameters"] == pytest.approx((1 - result["removed"]) * dense["parameters"], rel=1e-3)
        assert result["flops"] < dense["flops"]
        for stage in ("before", "after"):
            assert 0 <= result[stage]["val_accuracy"] <= 1
            assert result[stage]["divergence"] > 0
        assert result["before"] != result["after"]
        assert all(result[step]["seconds"] > 0 for step in ("pruning", "refinetuning"))
        assert result["refinetuning"]["peak_memory_bytes"] > 1e6


def test_only_the_checkpoints_that_are_asked_for_are_kept(measured: Path) -> None:
    kept = sorted(str(path.relative_to(measured)) for path in measured.glob("seed*/*"))
    assert kept == ["seed0/default-0.5-distill.ckpt", "seed0/dense.ckpt", "seed1/dense.ckpt"]
    module = TextClassification.load_from_checkpoint(measured / kept[0])
    assert is_pruned(find_encoder(module))


def test_existing_results_are_reused_and_averaged(
    measured: Path, run_sst2: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds.FineTuned, "prune", None)  # calling it would fail
    monkeypatch.setattr(seeds.FineTuned, "train", None)
    run_sst2(measured, seeds=(0, 1), presets=("paper",))
    printed = capsys.readouterr().out
    assert "over 2 seeds" in printed
    mean = 50 * sum(read(measured, "paper", seed)["after"]["val_accuracy"] for seed in (0, 1))
    assert f"{mean:.1f} ±" in printed


def test_a_model_is_pruned_once_for_all_recoveries(run_sst2: Run, measured: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "copy"))
    results = run_sst2(folder, seeds=(0,), presets=("kwon",), recoveries=("finetune", "distill"))
    _, first, second = results
    assert first["before"] == second["before"]
    assert first["pruning"] == second["pruning"]
    assert first["after"] != second["after"]
    assert (first["recovery"], second["recovery"]) == ("finetune", "distill")
    assert second["refinetuning_settings"]["logits_weight"] > 0


def test_statistics_and_the_teachers_answers_are_computed_once(
    run_sst2: Run, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ratio after another one gives the same results as a run of its own."""
    alone, shared = (Path(shutil.copytree(measured, tmp_path / name)) for name in ("alone", "shared"))
    settings: dict[str, Any] = {"seeds": (0,), "presets": ("default", "kwon"), "recoveries": ("distill",)}
    run_sst2(alone, ratios=(0.7,), **settings)
    calls: list[object] = []
    collect = calibrated_model.collect_statistics
    monkeypatch.setattr(calibrated_model, "collect_statistics", lambda *args: calls.append(1) or collect(*args))
    run_sst2(shared, ratios=(0.6, 0.7), teacher_cache=str(tmp_path / "cache"), **settings)
    assert len(calls) == 1
    assert any((tmp_path / "cache").iterdir())
    for method in settings["presets"]:
        expected, result = (
            next(one for one in records(folder) if (one["method"], one["ratio"]) == (method, 0.7))
            for folder in (alone, shared)
        )
        assert result["before"] == expected["before"]
        assert result["after"]["val_loss"] == pytest.approx(expected["after"]["val_loss"], rel=1e-3)
        assert (expected["refinetuning"]["cached"], result["refinetuning"]["cached"]) == (False, True)
        assert result["pruning"]["seconds"] > 0


def test_a_dense_checkpoint_that_is_there_is_used(measured: Path, run_sst2: Run, tmp_path: Path) -> None:
    shutil.copytree(measured / "seed0", tmp_path / "seed0")
    run_sst2(tmp_path, seeds=(0,), presets=())
    found, before = read(tmp_path, "dense"), read(measured, "dense")
    assert found["after"] == before["after"]
    assert found["finetuning"] is None
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(ValueError, match=r"dense\.ckpt' .*epochs=2, not 1"):
        run_sst2(tmp_path, seeds=(0,), presets=(), epochs=2)


def test_baselines_are_measured_from_the_same_dense_model(measured: Path, run_sst2: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "copy"))
    baselines = ("magnitude", "top-layers")
    run_sst2(folder, seeds=(0,), presets=baselines, recoveries=("distill",), keep_checkpoints=True)
    for name in baselines:
        result = read(folder, name)
        assert result["removed"] == pytest.approx(0.5, abs=0.01)
        assert {"val_loss", "val_accuracy"} <= result["before"].keys()
    assert read(folder, "magnitude")["refinetuning"]["hidden_weight"] == 1
    assert read(folder, "top-layers")["refinetuning"]["hidden_weight"] == 0
    assert read(folder, "magnitude")["flops"] == read(folder, "dense")["flops"]
    assert read(folder, "top-layers")["flops"] == read(folder, "dense")["flops"] / 2
    weights = torch.load(folder / "seed0" / "magnitude-0.5-distill.ckpt", weights_only=True)["state_dict"]
    matrices = [value for name, value in weights.items() if ".layer." in name and value.ndim == 2]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    assert zeros / sum(map(torch.numel, matrices)) == pytest.approx(0.5, abs=1e-3)  # after training


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
        pruning_options={"ridge": 0.1},
        precision="bf16-mixed",
    )
    names = ["val_accuracy", "val_mismatched_accuracy"]
    assert metrics_of_tables(capsys.readouterr().out) == names
    pruned = read(tmp_path, "default")
    assert all(pruned["before"][name] >= 0 for name in names)
    assert (pruned["pruning_options"], pruned["precision"]) == ({"ridge": 0.1}, "bf16-mixed")
    assert torch.load(tmp_path / "seed0" / "dense.ckpt", weights_only=True)["epoch"] == 2


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
    result = read(tmp_path / "out", "default")
    assert f"{result['after']['val_f1']:.1f} " in printed
    assert result["data_options"]["group_by_length"]
    assert result["after"]["divergence"] > 0


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


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"presets": ("best",)}, r"presets .*'best'.*'default', .*'kwon'"),
        ({"ratios": (0.5, 1.0)}, r"pruning_ratio=1\.0"),
        ({"epochs": 0}, "epochs=0 .*above 0"),
        ({"refinetuning_epochs": 0}, "refinetuning_epochs=0 .*above 0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 .*above 0"),
        ({"refinetuning_learning_rate": -1e-5}, "refinetuning_learning_rate=-1e-05"),
        ({"recoveries": ("finetune", "best")}, r"recoveries .*'best'.*'finetune', 'distill'"),
        ({"presets": ("default",), "pruning_options": {"ridge": -1.0}}, r"ridge=-1\.0"),
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


def test_a_folder_has_results_of_one_set_of_settings(measured: Path, run_sst2: Run) -> None:
    with pytest.raises(ValueError, match=r"out_dir=.*epochs=3, not 1; precision='bf16-mixed', not '32-true'"):
        run_sst2(measured, seeds=(), epochs=3, precision="bf16-mixed")
