"""Pruning methods by name: the presets, their ablations, and the baselines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch

from pgb_lightning.calibration.importance import encoder_importances
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import BASELINES
from pgb_lightning.experiments.baselines.masks import mask_matrices
from pgb_lightning.experiments.dense_reference import DenseReference
from pgb_lightning.experiments.missed_targets import ignore_missed_targets
from pgb_lightning.grouping.group_numbers import ImportanceSummary
from pgb_lightning.grouping.losses import predict_losses
from pgb_lightning.grouping.planning import plan_matrix
from pgb_lightning.grouping.threshold import choose_group_numbers
from pgb_lightning.modules import TextClassification
from pgb_lightning.plan import Index, PruningPlan
from pgb_lightning.pruning import make_plan
from pgb_lightning.search.candidates import Candidate

Candidates = list[list[Candidate]]


class NotApplicableError(ValueError):
    """Raised if a method cannot be applied to a model."""


def plan_by_config(reference: DenseReference, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Make the plan of the settings, without changes."""
    return make_plan(reference.encoder, reference.statistics, config, candidates)


def plan_by_magnitude(reference: DenseReference, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Use the squared weight as importance, in place of the second-order importance."""
    ones = {key: torch.ones_like(fisher) for key, fisher in reference.statistics.fisher.items()}
    return make_plan(reference.encoder, replace(reference.statistics, fisher=ones), config, candidates)


def plan_without_permutation(reference: DenseReference, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Keep the plan's group numbers, but take the diagonal blocks of each matrix without permutation."""
    plan = make_plan(reference.encoder, reference.statistics, config, candidates)
    matrices = (
        replace(
            matrix, input_index=_diagonal_index(matrix.input_index), output_index=_diagonal_index(matrix.output_index)
        )
        for matrix in plan.matrices
    )
    return replace(plan, matrices=tuple(matrices))


def plan_with_fixed_groups(
    reference: DenseReference, config: PruningConfig, candidates: Candidates, number: int | None = None
) -> PruningPlan:
    """Allow only one group number, in addition to dense and removed matrices.

    Args:
        reference: The dense model and its calibration.
        config: The settings.
        candidates: For the search over shapes.
        number: The group number; by default the length of each matrix's shorter side, which keeps one diagonal.

    Raises:
        NotApplicableError: If a matrix cannot have this number of groups.
    """
    plan = make_plan(reference.encoder, reference.statistics, config, candidates)
    importances = encoder_importances(reference.encoder, reference.statistics.fisher)
    summaries = {}
    for key, importance in importances.items():
        groups = min(importance.shape) if number is None else number
        summary = ImportanceSummary.from_importance(importance, groups)
        if groups not in summary.thresholds:
            rows, columns = importance.shape
            raise NotApplicableError(f"{groups} groups do not divide a matrix of {rows} x {columns}.")
        summaries[key] = replace(summary, thresholds={g: t for g, t in summary.thresholds.items() if g in (0, groups)})
    predict = partial(predict_losses, reference.encoder, reference.statistics, config, importances)
    numbers, _ = choose_group_numbers(summaries, config, predict=predict)
    matrices = (plan_matrix(key, importances[key], numbers[key], config) for key in importances)
    return replace(plan, matrices=tuple(matrices))


@dataclass(frozen=True)
class Method:
    """A variant of PGB.

    Args:
        preset: The preset on which it is based.
        settings: Settings that differ from the preset.
        plan: Function that makes the plan.
        masked: Whether pruning is unstructured: each matrix keeps the number of weights of the plan, but the most
            important ones at any position, as a mask without compensation.
    """

    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[DenseReference, PruningConfig, Candidates], PruningPlan] = plan_by_config
    masked: bool = False

    def config(self, ratio: float) -> PruningConfig:
        """Return the settings for a pruning ratio."""
        return PruningConfig.from_preset(self.preset, pruning_ratio=ratio, **self.settings)


METHODS: dict[str, Method] = {
    "default": Method("default"),
    "balanced": Method("balanced"),
    "paper": Method("paper"),
    "default, ridge 0.01": Method("default", {"ridge": 0.01}),
    "default, compensated groups": Method("default", {"permutation": "compensated"}),
    "balanced, compensated groups": Method("balanced", {"permutation": "compensated"}),
    "default, no compensation": Method("default", {"compensation": False}),
    "default, unstructured": Method("default", masked=True),
    "paper, no compensation": Method("paper", {"compensation": False}),
    "paper, no permutation": Method("paper", plan=plan_without_permutation),
    "paper, unstructured": Method("paper", masked=True),
    "paper, magnitude": Method("paper", plan=plan_by_magnitude),
    "paper, fixed G = 6": Method("paper", plan=partial(plan_with_fixed_groups, number=6)),
    "paper, full diagonal": Method("paper", plan=plan_with_fixed_groups),
}


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Args:
        module: The pruned module.
        removed: Fraction of the encoder's weights that was removed.
        kind: ``"shapes"`` if layers are smaller; ``"masks"`` if weights are zero.
        shapes: Shapes chosen by the search over shapes, if there was one.
    """

    module: TextClassification
    removed: float
    kind: Literal["shapes", "masks"] = "shapes"
    shapes: list[str] | None = None


def prune(reference: DenseReference, name: str, ratio: float, candidates: Candidates) -> Pruned:
    """Prune a copy of the dense model by a method or a baseline.

    Args:
        reference: The dense model and its calibration.
        name: Name in :data:`METHODS` or :data:`~pgb_lightning.experiments.baselines.BASELINES`.
        ratio: Fraction of the weights to remove.
        candidates: For the search over shapes.
    """
    if name in BASELINES:
        module = copy.deepcopy(reference.module)
        return Pruned(module, reference.baselines.prune(name, module.model, ratio), BASELINES[name].kind)
    method, config = METHODS[name], METHODS[name].config(ratio)
    with ignore_missed_targets():
        plan = method.plan(reference, config, candidates)
    if not method.masked:
        return Pruned(reference.pruned(plan, config), plan.pruning_ratio, shapes=plan.config.get("shapes"))
    module = copy.deepcopy(reference.module)
    encoder = find_encoder(module)
    importances = encoder_importances(encoder, reference.statistics.fisher)
    mask_matrices(encoder, importances, {(m.layer, m.kind): m.kept_share for m in plan.matrices})
    return Pruned(module, plan.pruning_ratio, "masks")


def _diagonal_index(index: Index) -> Index:
    """Return the index of diagonal blocks with as many and as large groups."""
    if not index:
        return index
    size = len(index[0])
    return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(len(index)))
