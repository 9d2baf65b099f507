"""The two measuring commands, on a tiny model: real numbers from one calibration each."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import quiet_trainer
from torch.utils.data import DataLoader

from pgb_lightning import ablations, prediction_check
from pgb_lightning.bench import Bench
from pgb_lightning.modules import TextClassification

pytestmark = [pytest.mark.filterwarnings("ignore:Calibrating on all"), pytest.mark.usefixtures("own_threads")]


Given = tuple[str, str, str, str]


def test_every_method_is_measured_at_every_ratio(
    bench_files: Callable[[str], Given], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = bench_files("sst2")
    methods = (*ablations.METHODS, "magnitude", "kwon", "top-layers")
    results = ablations.run(*given, ratios=(0.5,), methods=methods, out=str(tmp_path / "out.json"))
    assert [result["method"] for result in results] == list(methods)
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored["results"] == results
    by_name = {result["method"]: result for result in results}
    assert all(abs(result["removed"] - 0.5) <= 0.01 for name, result in by_name.items() if "diagonal" not in name)
    masked = {name for name, result in by_name.items() if result["kind"] == "masks"}
    assert masked == {"default, unstructured", "paper, unstructured", "magnitude"}
    assert len(by_name["default"]["shapes"]) == 4
    assert 0 < by_name["default"]["divergence"] < by_name["paper"]["divergence"]
    assert by_name["default"]["divergence"] < by_name["default, no compensation"]["divergence"]
    assert len({result["divergence"] for name, result in by_name.items() if name != "balanced"}) == len(results) - 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in methods)
    with pytest.raises(ValueError, match="methods names 'best', which is none of 'default'"):
        ablations.run(*given, methods=("best",))
    for paths in ((), (given[1], "nowhere.ckpt")):
        with pytest.raises(ValueError, match=r"ckpt_path=\[.*\] must be a checkpoint's file"):
            ablations.run(given[0], paths, *given[2:])


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
    together = ablations.run(task, (first, second), data, model, **options, out=str(tmp_path / "out.json"))
    shown = capsys.readouterr().out
    alone = [result for path in (first, second) for result in ablations.run(task, path, data, model, **options)]
    assert together == alone
    assert json.loads((tmp_path / "out.json").read_text())["dense"].keys() == {first, second}
    for name in options["methods"]:
        scores = [result["score"] for result in together if result["method"] == name]
        assert f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}" in shown


def test_plans_of_the_ablations_are_what_they_are_called(
    bench_files: Callable[[str], Given],
) -> None:
    given = bench_files("sst2")
    bench = Bench.load(*given, max_train_samples=None, calibration_size=None, seed=0)
    config = ablations.PruningConfig.from_preset("paper", pruning_ratio=0.8)
    numbers = {m.num_groups for m in ablations.fixed_groups(bench, config, [], number=6).matrices}
    assert numbers <= {0, 1, 6}
    assert 6 in numbers
    [gone, whole, *diagonal] = sorted({m.num_groups for m in ablations.fixed_groups(bench, config, []).matrices})
    assert (gone, whole, diagonal) in ((0, 1, []), (0, 1, [48]))
    plan, paper = ablations.unpermuted(bench, config, []), ablations.as_set(bench, config, [])
    assert plan.kept_parameters == paper.kept_parameters
    flat = [sum(matrix.input_index or (), ()) for matrix in plan.matrices]
    assert all(index == tuple(range(len(index))) for index in flat)


def test_unstructured_keeps_the_most_important_weights_at_the_plans_rates(bench_files: Callable[[str], Given]) -> None:
    bench = Bench.load(*bench_files("sst2"), max_train_samples=None, calibration_size=None, seed=0)
    config = ablations.PruningConfig.from_preset("paper", pruning_ratio=0.5)
    plan = ablations.as_set(bench, config, [])
    pruned = ablations.prune(bench, "paper, unstructured", 0.5, [])
    assert pruned.removed == plan.pruning_ratio
    for (layer, kind), linear in ablations.find_encoder(pruned.module).linears():
        share = plan.matrix(layer, kind).kept_share
        assert float(linear.weight_mask.mean()) == pytest.approx(share, abs=1e-3)
        importance = linear.weight_orig.square() * bench.statistics.fisher[layer, kind].T
        kept, gone = importance[linear.weight_mask == 1], importance[linear.weight_mask == 0]
        assert not len(kept) or not len(gone) or kept.min() >= gone.max()


def test_a_dense_model_diverges_from_itself_by_nothing(
    bench_files: Callable[[str], Given],
) -> None:
    for task in ("cola", "stsb"):
        given = bench_files(task)
        bench = Bench.load(*given, max_train_samples=None, calibration_size=None, seed=0)
        measured = bench.measure(bench.module)
        assert measured.divergence == pytest.approx(0, abs=1e-9)
        trainer = quiet_trainer()
        [expected] = trainer.validate(bench.module, DataLoader(bench.batches, batch_size=None), verbose=False)
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
