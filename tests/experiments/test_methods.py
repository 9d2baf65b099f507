"""Ways to prune by name: what each is called is what it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import methods
from pgb_lightning.experiments.dense_reference import DenseReference

pytestmark = pytest.mark.filterwarnings("ignore:Calibrating on all")

Given = tuple[str, str, str, str]


def test_plans_of_the_ablations_are_what_they_are_called(
    bench_files: Callable[[str], Given],
) -> None:
    given = bench_files("sst2")
    reference = DenseReference.load(*given, max_train_samples=None, calibration_size=None, seed=0)
    config = PruningConfig.from_preset("paper", pruning_ratio=0.8)
    numbers = {m.num_groups for m in methods.fixed_groups(reference, config, [], number=6).matrices}
    assert numbers <= {0, 1, 6}
    assert 6 in numbers
    [gone, whole, *diagonal] = sorted({m.num_groups for m in methods.fixed_groups(reference, config, []).matrices})
    assert (gone, whole, diagonal) in ((0, 1, []), (0, 1, [48]))
    plan, paper = methods.unpermuted(reference, config, []), methods.as_set(reference, config, [])
    assert plan.kept_parameters == paper.kept_parameters
    flat = [sum(matrix.input_index or (), ()) for matrix in plan.matrices]
    assert all(index == tuple(range(len(index))) for index in flat)


def test_a_fixed_number_of_groups_must_divide_every_matrix(bench_files: Callable[[str], Given]) -> None:
    reference = DenseReference.load(*bench_files("sst2"), max_train_samples=None, calibration_size=None, seed=0)
    with pytest.raises(methods.ImpossibleError, match=r"5 groups do not divide a matrix of \d+ x \d+"):
        methods.fixed_groups(reference, PruningConfig.from_preset("paper"), [], number=5)


def test_unstructured_keeps_the_most_important_weights_at_the_plans_rates(bench_files: Callable[[str], Given]) -> None:
    reference = DenseReference.load(*bench_files("sst2"), max_train_samples=None, calibration_size=None, seed=0)
    config = PruningConfig.from_preset("paper", pruning_ratio=0.5)
    plan = methods.as_set(reference, config, [])
    pruned = methods.prune(reference, "paper, unstructured", 0.5, [])
    assert pruned.removed == plan.pruning_ratio
    for (layer, kind), linear in find_encoder(pruned.module).linears():
        share = plan.matrix(layer, kind).kept_share
        assert float(linear.weight_mask.mean()) == pytest.approx(share, abs=1e-3)
        importance = linear.weight_orig.square() * reference.statistics.fisher[layer, kind].T
        kept, gone = importance[linear.weight_mask == 1], importance[linear.weight_mask == 0]
        assert not len(kept) or not len(gone) or kept.min() >= gone.max()
