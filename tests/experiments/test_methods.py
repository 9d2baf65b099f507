"""Pruning methods by name: the plans have the properties that the names promise."""

from __future__ import annotations

import pytest

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments import methods
from pgb_lightning.experiments.dense_reference import DenseReference


def test_fixed_groups_allow_one_group_number(reference: DenseReference) -> None:
    config = PruningConfig.from_preset("paper", pruning_ratio=0.8)
    plan = methods.plan_with_fixed_groups(reference, config, [], number=6)
    numbers = {matrix.num_groups for matrix in plan.matrices}
    assert numbers <= {0, 1, 6}
    assert 6 in numbers
    diagonal = {matrix.num_groups for matrix in methods.plan_with_fixed_groups(reference, config, []).matrices}
    assert {0, 1} <= diagonal <= {0, 1, 48}


def test_a_fixed_number_of_groups_must_divide_every_matrix(reference: DenseReference) -> None:
    with pytest.raises(methods.NotApplicableError, match=r"5 groups .*\d+ x \d+"):
        methods.plan_with_fixed_groups(reference, PruningConfig.from_preset("paper"), [], number=5)


def test_without_permutation_the_blocks_are_diagonal(reference: DenseReference) -> None:
    config = PruningConfig.from_preset("paper", pruning_ratio=0.8)
    plan = methods.plan_without_permutation(reference, config, [])
    assert plan.kept_parameters == methods.plan_by_config(reference, config, []).kept_parameters
    flat = [sum(matrix.input_index or (), ()) for matrix in plan.matrices]
    assert all(index == tuple(range(len(index))) for index in flat)


def test_unstructured_pruning_keeps_the_most_important_weights_at_the_rates_of_the_plan(
    reference: DenseReference,
) -> None:
    plan = methods.plan_by_config(reference, PruningConfig.from_preset("paper", pruning_ratio=0.5), [])
    pruned = methods.prune(reference, "paper, unstructured", 0.5, [])
    assert pruned.removed == plan.pruning_ratio
    for (layer, kind), linear in find_encoder(pruned.module).linears():
        fraction = plan.matrix(layer, kind).kept_share
        assert float(linear.weight_mask.mean()) == pytest.approx(fraction, abs=1e-3)
        importance = linear.weight_orig.square() * reference.statistics.fisher[layer, kind].T
        kept, removed = importance[linear.weight_mask == 1], importance[linear.weight_mask == 0]
        assert not len(kept) or not len(removed) or kept.min() >= removed.max()
