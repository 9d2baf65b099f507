"""Ways to prune: the presets, what is left of them without their parts, and the baselines, all by name."""

from __future__ import annotations

import copy
import warnings
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
from pgb_lightning.grouping.group_numbers import ImportanceSummary
from pgb_lightning.grouping.threshold import choose_group_numbers
from pgb_lightning.modules import TextClassification
from pgb_lightning.plan import Index, PruningPlan
from pgb_lightning.pruning import make_plan, plan_matrix
from pgb_lightning.search.candidates import Candidate

Candidates = list[list[Candidate]]


class ImpossibleError(ValueError):
    """A method that a model cannot have."""


def as_set(reference: DenseReference, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Plan as the settings say."""
    return make_plan(reference.encoder, reference.statistics, config, candidates)


def by_magnitude(reference: DenseReference, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Let every weight's importance be its square."""
    ones = {key: torch.ones_like(fisher) for key, fisher in reference.statistics.fisher.items()}
    return make_plan(reference.encoder, replace(reference.statistics, fisher=ones), config, candidates)


def unpermuted(reference: DenseReference, config: PruningConfig, candidates: Candidates) -> PruningPlan:
    """Cut each matrix into as many blocks, but along its diagonal as it comes."""
    plan = make_plan(reference.encoder, reference.statistics, config, candidates)
    matrices = (
        replace(matrix, input_index=_in_order(matrix.input_index), output_index=_in_order(matrix.output_index))
        for matrix in plan.matrices
    )
    return replace(plan, matrices=tuple(matrices))


def fixed_groups(
    reference: DenseReference, config: PruningConfig, candidates: Candidates, number: int | None = None
) -> PruningPlan:
    """Allow no group number but one, beside whole and pruned whole; by default as many as there can be.

    A matrix with as many groups as its shorter side keeps one diagonal.

    Raises:
        ImpossibleError: A matrix cannot have so many groups.
    """
    plan = make_plan(reference.encoder, reference.statistics, config, candidates)
    importances = encoder_importances(reference.encoder, reference.statistics.fisher)
    summaries = {}
    for key, importance in importances.items():
        groups = min(importance.shape) if number is None else number
        summary = ImportanceSummary.from_importance(importance, groups)
        if groups not in summary.thresholds:
            rows, columns = importance.shape
            raise ImpossibleError(f"{groups} groups do not divide a matrix of {rows} x {columns}.")
        summaries[key] = replace(summary, thresholds={g: t for g, t in summary.thresholds.items() if g in (0, groups)})
    numbers, _ = choose_group_numbers(summaries, config)
    matrices = (plan_matrix(key, importances[key], numbers[key], config) for key in importances)
    return replace(plan, matrices=tuple(matrices))


@dataclass(frozen=True)
class Method:
    """A way to prune, made of the parts of ours.

    Args:
        preset: The preset it starts from.
        settings: What is set otherwise.
        plan: Makes the plan.
        masked: Whether each matrix keeps as many weights as the plan says, but the most important ones, wherever they
            are: unstructured, and without compensation.
    """

    preset: str
    settings: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[DenseReference, PruningConfig, Candidates], PruningPlan] = as_set
    masked: bool = False

    def config(self, ratio: float) -> PruningConfig:
        """Return the settings at a ratio."""
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
    "paper, no permutation": Method("paper", plan=unpermuted),
    "paper, unstructured": Method("paper", masked=True),
    "paper, magnitude": Method("paper", plan=by_magnitude),
    "paper, fixed G = 6": Method("paper", plan=partial(fixed_groups, number=6)),
    "paper, full diagonal": Method("paper", plan=fixed_groups),
}


@dataclass(frozen=True)
class Pruned:
    """What a method makes of a dense model.

    Args:
        module: The pruned module.
        removed: The share of the encoder's weights that it lacks.
        kind: ``"shapes"`` if layers are smaller; ``"masks"`` if they have zeros.
        shapes: What the search over shapes chose, if there was one.
    """

    module: TextClassification
    removed: float
    kind: Literal["shapes", "masks"] = "shapes"
    shapes: list[str] | None = None


def prune(reference: DenseReference, name: str, ratio: float, candidates: Candidates) -> Pruned:
    """Prune a copy of the dense model by a method or a baseline.

    Args:
        reference: The dense model and its calibration.
        name: One of :data:`METHODS` or :data:`~pgb_lightning.experiments.baselines.BASELINES`.
        ratio: Share of the weights to remove.
        candidates: For the search over shapes.
    """
    if name in BASELINES:
        module = copy.deepcopy(reference.module)
        return Pruned(module, reference.baselines.prune(name, module.model, ratio), BASELINES[name].kind)
    method, config = METHODS[name], METHODS[name].config(ratio)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a missed target shows in the table
        plan = method.plan(reference, config, candidates)
    if not method.masked:
        return Pruned(reference.pruned(plan, config), plan.pruning_ratio, shapes=plan.config.get("shapes"))
    module = copy.deepcopy(reference.module)
    encoder = find_encoder(module)
    importances = encoder_importances(encoder, reference.statistics.fisher)
    mask_matrices(encoder, importances, {(m.layer, m.kind): m.kept_share for m in plan.matrices})
    return Pruned(module, plan.pruning_ratio, "masks")


def _in_order(index: Index) -> Index:
    if not index:
        return index
    size = len(index[0])
    return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(len(index)))
