"""The two measuring commands, on a tiny model: real numbers from one calibration each."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.fakes import quiet_trainer
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import ablations, methods, prediction_check
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.modules import TextClassification

pytestmark = [pytest.mark.filterwarnings("ignore:Calibrating on all"), pytest.mark.usefixtures("own_threads")]


Given = tuple[str, str, str, str]


def test_every_method_is_measured_at_every_ratio(
    bench_files: Callable[[str], Given], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = bench_files("sst2")
    names = (*methods.METHODS, "magnitude", "kwon", "top-layers")
    results = ablations.run(*given, ratios=(0.5,), methods=names, out=str(tmp_path / "out.jsonl"))
    assert [result["method"] for result in results] == ["dense", *names]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == results
    by_name = {result["method"]: result for result in results}
    dense = by_name.pop("dense")
    assert (dense["removed"], dense["divergence"]) == (0, pytest.approx(0, abs=1e-9))
    assert all(abs(result["removed"] - 0.5) <= 0.01 for name, result in by_name.items() if "diagonal" not in name)
    masked = {name for name, result in by_name.items() if result["kind"] == "masks"}
    assert masked == {"default, unstructured", "paper, unstructured", "magnitude"}
    assert len(by_name["default"]["shapes"]) == 4
    assert 0 < by_name["default"]["divergence"] < by_name["paper"]["divergence"]
    assert by_name["default"]["divergence"] < by_name["default, no compensation"]["divergence"]
    alike = {"balanced", "default, compensated groups"}  # as greedy, and as without, where greed or no group is best
    assert len({by_name[name]["divergence"] for name in names if name not in alike}) == len(names) - len(alike)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    with pytest.raises(ValueError, match="methods names 'best', which is none of 'default'"):
        ablations.run(*given, methods=("best",))
    for paths in ((), (given[1], "nowhere.ckpt")):
        with pytest.raises(ValueError, match=r"ckpt_path=\[.*\] must be a checkpoint's file"):
            ablations.run(given[0], paths, *given[2:])
    with pytest.raises(ValueError, match=r"seed=\[0, 1\] must be one number, or as many as there are checkpoints: 1"):
        ablations.run(*given, seed=(0, 1))
    with pytest.raises(ValueError, match=r"refinetuning_epochs=-1 is out of range: give 0 or more"):
        ablations.run(*given, refinetuning_epochs=-1)
    with pytest.raises(ValueError, match=r"refinetuning_learning_rate=0 is out of range: give one above 0"):
        ablations.run(*given, refinetuning_epochs=1, refinetuning_learning_rate=0)
    with pytest.raises(ValueError, match=r"pruning_ratio=1.0 is out of range"):
        ablations.run(*given, ratios=(0.5, 1.0))
    with pytest.raises(ValueError, match=r"task='cola' is not what ckpt_path='.*' was fine-tuned for, which is 'sst2'"):
        ablations.run("cola", *given[1:])
    out = tmp_path / "never" / "out.jsonl"
    for option, message in {
        "batch_siz": "no setting of GLUE.*'batch_size'",
        "seed": "decided by another argument",
    }.items():
        with pytest.raises(ValueError, match=rf"data_options names '{option}', which is {message}"):
            ablations.run(*given, data_options={option: 8}, out=str(out))
    assert not out.parent.exists()


def test_several_dense_models_are_averaged(
    bench_files: Callable[[str], Given], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, first, data, model = bench_files("sst2")
    torch.manual_seed(1)
    module = TextClassification.load_from_checkpoint(first)
    torch.nn.init.normal_(module.model.classifier.weight, std=0.5)
    second = str(tmp_path / "second.ckpt")
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(second)
    options = {"ratios": (0.5,), "methods": ("default", "top-layers")}
    together = ablations.run(task, (first, second), data, model, **options, seed=(0, 1))
    shown = capsys.readouterr().out
    alone = [ablations.run(task, path, data, model, **options, seed=seed) for seed, path in enumerate((first, second))]
    assert together == [*alone[0], *alone[1]]
    for name in options["methods"]:
        scores = [result["score"] for result in together if result["method"] == name]
        assert f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}" in shown


def test_what_is_pruned_is_refinetuned_where_it_stands(
    bench_files: Callable[[str], Given], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = bench_files("sst2"), tmp_path / "out.jsonl"
    names = ("default", "paper, no permutation", "magnitude", "top-layers")
    options = {"ratios": (0.5,), "refinetuning_epochs": 1, "refinetuning_learning_rate": 1e-2}
    first = ablations.run(*given, methods=names[:1], **options, out=str(out))
    results = ablations.run(*given, methods=names, **options, out=str(out))
    shown = capsys.readouterr().out
    assert results[: len(first)] == first
    dense, *pruned = results
    for result in results:  # the dense model trains as long
        assert result["refinetuned"].keys() == {"score", "loss", "divergence"}
        assert result["refinetuned"]["loss"] != result["loss"]
        assert f"{result['refinetuned']['divergence']:.4f}" in shown
    alone = ablations.run(*given, methods=names[-1:], **options)
    assert alone == [dense, pruned[-1]]  # neither what was pruned before nor the file changes a result
    one_shot = ablations.run(*given, methods=names, ratios=(0.5,), out=str(out))
    for result, before in zip(one_shot, results, strict=True):
        assert {name: result[name] for name in ("score", "loss", "divergence")} == {
            name: before[name] for name in ("score", "loss", "divergence")
        }
    assert len(out.read_text().splitlines()) == 2 * len(results)  # of two ways to measure, neither mixed nor twice


def test_what_is_measured_is_read(
    bench_files: Callable[[str], Given],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, out = bench_files("sst2"), str(tmp_path / "out.jsonl")
    options = {"ratios": (0.5,), "methods": ("magnitude",), "out": out}
    results = ablations.run(*given, **options)
    shown = capsys.readouterr().out

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("it is measured again")

    monkeypatch.setattr(DenseReference, "load", never)
    assert ablations.run(*given, **options) == results
    assert ablations.run(*given, **options, refinetuning_learning_rate=1.0) == results  # nothing is trained
    first, second, _ = capsys.readouterr().out.partition(shown)
    assert (first, second) == ("", shown)
    moved = shutil.copy(given[1], tmp_path / "moved.ckpt")
    assert ablations.run(given[0], str(moved), *given[2:], **options) == results  # the same dense model
    shutil.copytree(given[2], tmp_path / "data")
    changes: list[dict[str, object]] = [
        *({"calibration_size": 32}, {"max_train_samples": 32}, {"seed": 1}, {"data_options": {"max_length": 32}}),
        *({"refinetuning_epochs": 1}, {"data_dir": str(tmp_path / "data")}, {"model_name_or_path": "another"}),
    ]
    named = dict(zip(("task", "ckpt_path", "data_dir", "model_name_or_path"), given, strict=True))
    for change in changes:
        with pytest.raises(AssertionError, match="measured again"):
            ablations.run(**{**named, **options, **change})
    checkpoint = torch.load(given[1], weights_only=True)
    checkpoint["state_dict"]["model.classifier.bias"] += 1
    torch.save(checkpoint, given[1])
    with pytest.raises(AssertionError, match="measured again"):
        ablations.run(*given, **options)


def test_training_again_depends_on_its_learning_rate(bench_files: Callable[[str], Given], tmp_path: Path) -> None:
    given, out = bench_files("sst2"), tmp_path / "out.jsonl"
    options = {"ratios": (0.5,), "methods": ("top-layers",), "refinetuning_epochs": 1, "out": str(out)}
    slow, fast = (ablations.run(*given, **options, refinetuning_learning_rate=rate)[-1] for rate in (1e-6, 1e-2))
    assert slow["score"] == fast["score"]
    assert abs(slow["refinetuned"]["loss"] - slow["loss"]) < abs(fast["refinetuned"]["loss"] - fast["loss"])
    assert len(out.read_text().splitlines()) == 4


def test_options_reach_the_data(bench_files: Callable[[str], Given]) -> None:
    given = bench_files("sst2")
    reference = DenseReference.load(*given, None, None, 3, {"eval_batch_size": 5, "max_length": 16})
    assert len(reference.batches[0]["labels"]) == 5
    assert (reference.data.max_length, reference.data.seed) == (16, 3)


def test_the_tokenizer_is_the_model_s(bench_files: Callable[[str], Given], tmp_path: Path) -> None:
    task, path, data, model = bench_files("sst2")
    assert DenseReference.load(task, path, data, None, None, None, 0).data.model_name_or_path == model
    options = {"ratios": (0.5,), "methods": ("magnitude",), "out": str(tmp_path / "out.jsonl")}
    results = ablations.run(task, path, data, **options)
    assert [result["model_name_or_path"] for result in results] == [model, model]
    assert ablations.run(task, path, data, model, **options) == results  # the same, and read


def test_what_a_model_cannot_have_is_left_out(
    bench_files: Callable[[str], Given], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifths = methods.Method("paper", plan=partial(methods.fixed_groups, number=5))
    monkeypatch.setitem(methods.METHODS, "paper, fixed G = 5", fifths)
    options = {"ratios": (0.5,), "methods": ("paper, fixed G = 5", "magnitude"), "out": str(tmp_path / "out.jsonl")}
    with pytest.warns(UserWarning, match=r"'paper, fixed G = 5' is left out: 5 groups do not divide a matrix"):
        results = ablations.run(*bench_files("sst2"), **options)
    assert [result["method"] for result in results] == ["dense", "magnitude"]


def test_candidates_are_those_of_the_method(bench_files: Callable[[str], Given]) -> None:
    reference = DenseReference.load(*bench_files("sst2"), None, None, 0)
    dense = ablations.DenseModel(lambda: reference, 0, 1e-5)
    usual, groups = dense.candidates("default"), dense.candidates("default, compensated groups")
    assert dense.candidates("default, no compensation") is usual
    assert sum(c.loss for options in groups for c in options) < sum(c.loss for options in usual for c in options)
    assert dense.candidates("paper") == dense.candidates("magnitude") == []


def test_nothing_is_run_twice(bench_files: Callable[[str], Given]) -> None:
    task, path, *rest = bench_files("sst2")
    twice = {"ratios": (0.5, 0.5), "methods": ("magnitude", "magnitude")}
    results = ablations.run(task, (path, path, path), *rest, **twice, seed=(0, 1, 1))
    assert [(r["seed"], r["method"]) for r in results] == [
        (seed, method) for seed in (0, 1) for method in ("dense", "magnitude")
    ]


def test_masks_hold_in_refinetuning(bench_files: Callable[[str], Given]) -> None:
    reference = DenseReference.load(*bench_files("sst2"), max_train_samples=None, calibration_size=None, seed=0)
    module = methods.prune(reference, "magnitude", 0.5, []).module
    before = {key: linear.weight.detach().clone() for key, linear in find_encoder(module).linears()}
    reference.refinetune(module, epochs=2, learning_rate=1e-3)
    assert not module.training
    assert module.trainer.global_step == 2 * 2
    for key, linear in find_encoder(module).linears():
        assert isinstance(linear.weight, torch.nn.Parameter)
        assert torch.equal(linear.weight == 0, before[key] == 0)
        assert not torch.equal(linear.weight, before[key])


def test_a_dense_model_diverges_from_itself_by_nothing(
    bench_files: Callable[[str], Given],
) -> None:
    for task in ("cola", "stsb"):
        given = bench_files(task)
        reference = DenseReference.load(*given, max_train_samples=None, calibration_size=None, seed=0)
        measured = reference.measure(reference.module)
        assert measured.divergence == pytest.approx(0, abs=1e-9)
        trainer = quiet_trainer()
        [expected] = trainer.validate(reference.module, DataLoader(reference.batches, batch_size=None), verbose=False)
        assert measured.loss == pytest.approx(expected["val_loss"], rel=1e-5)
        metric = {"cola": "val_matthews", "stsb": "val_spearman"}[task]
        assert measured.score == pytest.approx(100 * expected[metric], rel=1e-4)


def test_predictions_rank_what_is_measured(
    bench_files: Callable[[str], Given], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = bench_files("sst2")
    found = prediction_check.run(*given, candidates=5, out=str(tmp_path / "out.csv"))
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 4 * 5
    assert [int(row["layer"]) for row in rows] == [0] * 10 + [1] * 10
    assert found["all_divergence"] > 0.5
    assert f"{found['all_divergence']:.3f}" in capsys.readouterr().out
    narrow = [row for row in rows if row["sublayer"] == "ffn" and "groups" not in row["shape"]]
    columns = ([float(row[name]) for row in narrow] for name in ("predicted", "divergence"))
    expected = spearmanr(*columns).statistic
    assert found["fewer neurons_divergence"] == pytest.approx(expected, abs=1e-3)
    assert {name.removesuffix("_loss") for name in found if name.endswith("_loss")} >= {
        *("attention", "ffn", "all", "fewer heads", "fewer neurons", "ffn groups", "attention groups"),
    }
