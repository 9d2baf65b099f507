"""The ablations command on a tiny model: every method is measured, stored and reused."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fakes import quiet_trainer

from pgb_lightning.experiments import ablations, methods
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.records import Result
from pgb_lightning.modules import TextClassification

pytestmark = pytest.mark.usefixtures("restored_threads")

Inputs = dict[str, str]
SCORES = ("score", "loss", "divergence")
REFINETUNED = {"ratios": (0.5,), "refinetuning_epochs": 1, "refinetuning_learning_rate": 1e-2}
REFINETUNED_METHODS = ("default", "magnitude", "top-layers")


def pick(result: Result, names: Sequence[str]) -> Result:
    return {name: result[name] for name in names}


def test_every_method_is_measured(sst2: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = (*methods.METHODS, "magnitude", "fisher", "kwon", "top-layers")
    results = ablations.run(**sst2, ratios=(0.6,), methods=names, out=str(tmp_path / "out.jsonl"))
    assert [result["method"] for result in results] == ["dense", *names]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == results
    by_name = {result["method"]: result for result in results}
    dense = by_name.pop("dense")
    assert (dense["removed"], dense["divergence"]) == (0, pytest.approx(0, abs=1e-9))
    removed = {name: result["removed"] for name, result in by_name.items() if "diagonal" not in name}
    assert removed.pop("top-layers") == pytest.approx(0.5, abs=0.01)  # one of two layers
    assert list(removed.values()) == pytest.approx([0.6] * len(removed), abs=0.01)
    masked = {name for name, result in by_name.items() if result["kind"] == "masks"}
    assert masked == {"default, unstructured", "paper, unstructured", "magnitude", "fisher"}
    assert len(by_name["default"]["shapes"]) == 4
    assert 0 < by_name["default"]["divergence"] < by_name["paper"]["divergence"]
    assert by_name["default"]["divergence"] < by_name["default, no compensation"]["divergence"]
    # On this model these two may equal "paper" and "default".
    may_be_equal = {"balanced", "default, compensated groups"}
    assert len({by_name[name]["divergence"] for name in names if name not in may_be_equal}) == len(names) - 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"methods": ("best",)}, "methods .*'best'.*'default'"),
        ({"ckpt_path": ()}, r"ckpt_path=\[\]"),
        ({"ckpt_path": ("nowhere.ckpt",)}, r"ckpt_path=\['nowhere\.ckpt'\]"),
        ({"seed": (0, 1)}, r"seed=\[0, 1\].* 1"),
        ({"refinetuning_epochs": -1}, "refinetuning_epochs=-1 .*0 or more"),
        ({"refinetuning_epochs": 1, "refinetuning_learning_rate": 0}, "refinetuning_learning_rate=0 .*above 0"),
        ({"ratios": (0.5, 1.0)}, r"pruning_ratio=1\.0"),
        ({"task": "cola"}, "task='cola' .*'sst2'"),
        ({"data_options": {"batch_siz": 8}}, "data_options .*'batch_siz'.*'batch_size'"),
        ({"data_options": {"seed": 8}}, "data_options .*'seed'"),
    ],
)
def test_invalid_settings_raise_before_anything_is_written(
    settings: dict[str, Any], match: str, sst2: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out.jsonl"
    with pytest.raises(ValueError, match=match):
        ablations.run(**{**sst2, "out": str(out), **settings})
    assert not out.exists()


def test_several_dense_models_are_averaged(sst2: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    module = TextClassification.load_from_checkpoint(sst2["ckpt_path"])
    module.model.classifier.weight.data.normal_(std=0.5)
    paths = (sst2["ckpt_path"], str(tmp_path / "second.ckpt"))
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(paths[1])
    options: dict[str, Any] = {"ratios": (0.5,), "methods": ("magnitude", "top-layers")}
    together = ablations.run(**{**sst2, "ckpt_path": paths}, **options, seed=(0, 1))
    printed = capsys.readouterr().out
    separate = [
        result
        for seed, path in enumerate(paths)
        for result in ablations.run(**{**sst2, "ckpt_path": path}, **options, seed=seed)
    ]
    assert together == separate
    for name in options["methods"]:
        scores = [result["score"] for result in together if result["method"] == name]
        assert f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}" in printed


@pytest.fixture(scope="module")
def refinetuned(
    sst2: Inputs, tmp_path_factory: pytest.TempPathFactory, restored_threads: None
) -> tuple[list[Result], Path]:
    """Measure some methods before and after re-finetuning; return the results and their file."""
    out = tmp_path_factory.mktemp("refinetuned") / "out.jsonl"
    return ablations.run(**sst2, methods=REFINETUNED_METHODS, **REFINETUNED, out=str(out)), out


def test_pruned_and_dense_models_are_refinetuned(
    refinetuned: tuple[list[Result], Path], sst2: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = refinetuned
    again = ablations.run(**sst2, methods=REFINETUNED_METHODS, **REFINETUNED, out=str(out))
    printed = capsys.readouterr().out
    assert again == results
    assert [result["method"] for result in results] == ["dense", *REFINETUNED_METHODS]
    for result in results:
        assert result["refinetuned"].keys() == set(SCORES)
        assert result["refinetuned"]["loss"] != result["loss"]
        assert f"{result['refinetuned']['divergence']:.4f}" in printed


def test_a_result_does_not_depend_on_the_other_methods_or_the_file(
    refinetuned: tuple[list[Result], Path], sst2: Inputs
) -> None:
    results, _ = refinetuned
    assert ablations.run(**sst2, methods=REFINETUNED_METHODS[-1:], **REFINETUNED) == [results[0], results[-1]]


def test_other_training_settings_are_other_results_in_the_same_file(
    refinetuned: tuple[list[Result], Path], sst2: Inputs, tmp_path: Path
) -> None:
    results, stored = refinetuned
    out = Path(shutil.copy(stored, tmp_path))
    one_shot = ablations.run(**sst2, methods=REFINETUNED_METHODS, ratios=(0.5,), out=str(out))
    assert [pick(result, SCORES) for result in one_shot] == [pick(result, SCORES) for result in results]
    assert not any("refinetuned" in result for result in one_shot)
    slow = {**REFINETUNED, "refinetuning_learning_rate": 1e-6}
    *_, slowly = ablations.run(**sst2, methods=("top-layers",), **slow, out=str(out))
    fast = results[-1]
    assert slowly["score"] == fast["score"]
    assert abs(slowly["refinetuned"]["loss"] - slowly["loss"]) < abs(fast["refinetuned"]["loss"] - fast["loss"])
    assert len(out.read_text().splitlines()) == len(results) + len(one_shot) + 2


def test_stored_results_are_reused_only_for_the_same_settings_and_weights(
    sst2: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**sst2, "ckpt_path": str(shutil.copy(sst2["ckpt_path"], tmp_path / "dense.ckpt"))}
    options = {"ratios": (0.5,), "methods": ("magnitude",), "out": str(tmp_path / "out.jsonl")}
    results = ablations.run(**given, **options)
    printed = capsys.readouterr().out

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(DenseReference, "load", fail)
    assert ablations.run(**given, **options) == results
    assert capsys.readouterr().out == printed
    assert ablations.run(**given, **options, refinetuning_learning_rate=1.0) == results  # nothing is trained
    moved = str(shutil.copy(given["ckpt_path"], tmp_path / "moved.ckpt"))
    assert ablations.run(**{**given, "ckpt_path": moved}, **options) == results
    shutil.copytree(given["data_dir"], tmp_path / "data")
    changes: list[dict[str, object]] = [
        {"calibration_size": 32},
        {"max_train_samples": 32},
        {"seed": 1},
        {"data_options": {"max_length": 32}},
        {"refinetuning_epochs": 1},
        {"data_dir": str(tmp_path / "data")},
        {"model_name_or_path": "another"},
    ]
    for change in changes:
        with pytest.raises(AssertionError, match="measured again"):
            ablations.run(**{**given, **options, **change})
    checkpoint = torch.load(given["ckpt_path"], weights_only=True)
    checkpoint["state_dict"]["model.classifier.bias"] += 1
    torch.save(checkpoint, given["ckpt_path"])
    with pytest.raises(AssertionError, match="measured again"):
        ablations.run(**given, **options)


def test_the_default_tokenizer_is_that_of_the_checkpoint(sst2: Inputs, tmp_path: Path) -> None:
    without = {name: value for name, value in sst2.items() if name != "model_name_or_path"}
    options = {"ratios": (0.5,), "methods": ("magnitude",), "out": str(tmp_path / "out.jsonl")}
    results = ablations.run(**without, **options)
    assert [result["model_name_or_path"] for result in results] == [sst2["model_name_or_path"]] * 2
    assert ablations.run(**sst2, **options) == results


def test_methods_that_cannot_be_applied_are_skipped(
    sst2: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifths = methods.Method("paper", plan=partial(methods.plan_with_fixed_groups, number=5))
    monkeypatch.setitem(methods.METHODS, "paper, fixed G = 5", fifths)
    options = {"ratios": (0.5,), "methods": ("paper, fixed G = 5", "magnitude"), "out": str(tmp_path / "out.jsonl")}
    with pytest.warns(UserWarning, match=r"'paper, fixed G = 5' is skipped: 5 groups"):
        results = ablations.run(**sst2, **options)
    assert [result["method"] for result in results] == ["dense", "magnitude"]


def test_candidates_are_shared_by_methods_with_the_same_search(reference: DenseReference) -> None:
    dense = ablations.DenseModel(lambda: reference, 0, 1e-5)
    usual, groups = dense.candidates("default"), dense.candidates("default, compensated groups")
    assert dense.candidates("default, no compensation") is usual
    assert sum(c.loss for options in groups for c in options) < sum(c.loss for options in usual for c in options)
    assert dense.candidates("paper") == dense.candidates("magnitude") == []


def test_repeated_settings_run_once(sst2: Inputs) -> None:
    paths = (sst2["ckpt_path"],) * 3
    twice: dict[str, Any] = {"ratios": (0.5, 0.5), "methods": ("magnitude", "magnitude"), "seed": (0, 1, 1)}
    results = ablations.run(**{**sst2, "ckpt_path": paths}, **twice)
    assert [(r["seed"], r["method"]) for r in results] == [
        (seed, method) for seed in (0, 1) for method in ("dense", "magnitude")
    ]
