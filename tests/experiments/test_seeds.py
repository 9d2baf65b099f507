"""The seeded experiment: real scores in files, resumed where it stopped, and summed up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fakes import squad_folder

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import seeds as experiment
from pgb_lightning.modules import TextClassification
from pgb_lightning.surgery.checks import is_pruned

pytestmark = pytest.mark.usefixtures("own_threads")


def test_scores_are_measured_kept_and_tabulated(
    tmp_path: Path,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> None:
        experiment.run(
            *("sst2", str(tmp_path), str(glue_folder("sst2", train=64, validation=40)), str(tiny_model_folder("bert"))),
            seeds=(0, 1),
            ratios=(0.5,),
            presets=("paper", "default"),
            max_length=32,
        )

    run()
    shown = capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("seed*/*.json"))]
    assert len(results) == 2 * 3
    pruned = [result for result in results if "preset" in result]
    assert all(abs(result["removed"] - 0.5) <= 0.01 for result in pruned)
    assert all(0 <= result[key] <= 1 for result in pruned for key in ("before", "after"))
    for result in pruned:
        name = tmp_path / f"seed{result['seed']}" / f"{result['preset']}-0.5.ckpt"
        module = TextClassification.load_from_checkpoint(name)
        assert is_pruned(find_encoder(module))
    assert "over 2 seeds" in shown
    mean = 50 * sum(result["after"] for result in pruned if result["preset"] == "paper")
    assert f"{mean:.1f} ±" in shown

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("everything is measured already")

    monkeypatch.setattr(experiment, "train", never)
    run()
    assert shown.endswith(capsys.readouterr().out)


def test_every_metric_and_validation_set_is_tabulated(
    tmp_path: Path,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for task, names in (("mrpc", ["val_accuracy", "val_f1"]), ("mnli", ["val_accuracy", "val_mismatched_accuracy"])):
        folder = tmp_path / task
        experiment.run(
            *(task, str(folder), str(glue_folder(task, train=64, validation=40)), str(tiny_model_folder("bert"))),
            seeds=(0,),
            ratios=(0.5,),
            presets=("default",),
            epochs=2,
            max_length=64,
        )
        shown = capsys.readouterr().out
        assert [line.split(",")[0].strip() for line in shown.splitlines() if ", mean ±" in line] == names
        pruned = json.loads((folder / "seed0" / "default-0.5.json").read_text())
        assert all(pruned["scores"]["before"][name] >= 0 for name in names)
        assert pruned["before"] == pruned["scores"]["before"][names[0]]
        assert torch.load(folder / "seed0" / "dense.ckpt", weights_only=True)["epoch"] == 2
        assert torch.load(folder / "seed0" / "default-0.5.ckpt", weights_only=True)["epoch"] == 1


def test_peers_are_measured_beside_presets(
    tmp_path: Path,
    tiny_model_folder: Callable[..., Path],
    glue_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    baselines = ("kwon", "magnitude", "top-layers")
    experiment.run(
        *("sst2", str(tmp_path), str(glue_folder("sst2", train=64, validation=40)), str(tiny_model_folder("bert"))),
        seeds=(0,),
        ratios=(0.5,),
        presets=("default", *baselines),
        max_length=32,
    )
    shown = capsys.readouterr().out
    for name in baselines:
        assert name in shown
        result = json.loads((tmp_path / "seed0" / f"{name}-0.5.json").read_text())
        assert result["removed"] == pytest.approx(0.5, abs=0.01)
        assert {"val_loss", "val_accuracy"} <= result["scores"]["before"].keys()
    weights = torch.load(tmp_path / "seed0" / "magnitude-0.5.ckpt", weights_only=True)["state_dict"]
    matrices = [value for name, value in weights.items() if ".layer." in name and value.ndim == 2]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    assert zeros / sum(map(torch.numel, matrices)) == pytest.approx(0.5, abs=1e-3)  # after training


def test_distilled_results_are_kept_apart(
    tmp_path: Path, tiny_model_folder: Callable[..., Path], glue_folder: Callable[..., Path]
) -> None:
    data, model = str(glue_folder("sst2", train=64, validation=40)), str(tiny_model_folder("bert"))
    settings = {"seeds": (0,), "ratios": (0.5,), "presets": ("default", "kwon"), "max_length": 32}
    experiment.run("sst2", str(tmp_path), data, model, distillation=True, **settings)
    for name in settings["presets"]:
        result = json.loads((tmp_path / "seed0" / f"{name}-0.5.json").read_text())
        assert result["scores"]["after"]["train_distillation"] > 0
    assert json.loads((tmp_path / "settings.json").read_text())["distillation"] is True
    with pytest.raises(ValueError, match=r"other settings: distillation=None, not True\. Name another"):
        experiment.run("sst2", str(tmp_path), data, model, **settings)


def test_an_unknown_preset_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"presets names 'best', which is none of 'default', .*'kwon'"):
        experiment.run("mrpc", str(tmp_path / "made"), presets=("best",))
    assert not (tmp_path / "made").exists()


def test_unknown_options_of_the_data_claim_no_folder(tmp_path: Path) -> None:
    for options in ({"group_by_lenght": True}, {"seed": 1}, {"task": "cola"}, {"version": "2.0"}):
        with pytest.raises(ValueError, match=rf"data_options names '{next(iter(options))}', which is "):
            experiment.run("squad", str(tmp_path / "made"), data_options=options)
    with pytest.raises(ValueError, match="data_options names 'max_length', which is decided by another argument"):
        experiment.run("squad", str(tmp_path / "made"), max_length=64, data_options={"max_length": 32})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("task", "version"), [("squad", "1.1"), ("squad_v2", "2.0")])
def test_squad_is_measured_in_percent(
    task: str, version: str, tmp_path: Path, tiny_model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model_folder("bert", max_position_embeddings=128)
    experiment.run(
        *(task, str(tmp_path / "out"), str(squad_folder(tmp_path / "data", version)), str(model)),
        seeds=(0,),
        ratios=(0.5,),
        presets=("default",),
        max_length=96,
        data_options={"stride": 16, "group_by_length": True},
    )
    shown = capsys.readouterr().out
    names = ["val_f1", "val_exact_match"]
    names += ["val_HasAns_f1", "val_NoAns_f1", "val_best_f1"] if version == "2.0" else []
    assert [line.split(",")[0].strip() for line in shown.splitlines() if ", mean ±" in line] == names
    scores = json.loads((tmp_path / "out" / "seed0" / "default-0.5.json").read_text())["scores"]["after"]
    assert f"{scores['val_f1']:.1f} " in shown
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["data_options"]["group_by_length"]


def test_results_without_further_scores_are_still_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, score in enumerate((0.8, 0.9)):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        pruned = {"seed": seed, "preset": "paper", "ratio": 0.3, "removed": 0.301, "before": score, "after": score}
        (folder / "dense.json").write_text(json.dumps({"seed": seed, "dense": score}))
        (folder / "paper-0.3.json").write_text(json.dumps(pruned))
    experiment.run("mrpc", str(tmp_path), seeds=(0, 1), ratios=(0.3,), presets=("paper",))
    first, second = capsys.readouterr().out.split("val_f1")
    assert "over 2 seeds; dense 85.0 ± 7.1" in " ".join(first.split())
    assert "85.0 ± 7.1" in first.splitlines()[-3]
    assert "over 0 seeds; dense -" in " ".join(second.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratios": (0.5, 1.0)}, r"pruning_ratio=1.0 is out of range"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 is out of range: give one above 0"),
        ({"refinetuning_learning_rate": -1e-5}, r"refinetuning_learning_rate=-1e-05 is out of range"),
        ({"presets": ("default", "top-layers"), "distillation": True}, r"'top-layers', whose hidden states cannot be"),
    ],
)
def test_what_would_fail_after_the_dense_model_is_refused_before_it(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.run("mrpc", str(tmp_path / "made"), **settings)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["epochs", "refinetuning_epochs"])
def test_training_for_no_epoch_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is out of range: give 1 or more"):
        experiment.run("mrpc", str(tmp_path), **{name: 0})


def test_a_folder_is_kept_to_one_way_of_training(tmp_path: Path) -> None:
    experiment.run("mrpc", str(tmp_path), seeds=())
    with pytest.raises(ValueError, match=r"epochs=3, not 1; data_options=.*64}, not {.*128}\. Name another"):
        experiment.run("mrpc", str(tmp_path), seeds=(), epochs=3, max_length=64)


def test_an_unknown_task_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose one of: cola, sst2.* Or one of: squad, squad_v2"):
        experiment.run("imdb", str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()
