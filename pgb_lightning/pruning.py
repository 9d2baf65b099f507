"""The whole method: calibrate, make a plan, and apply it with compensation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from pgb_lightning.calibration.collect import Calibration, Loss, calibrate
from pgb_lightning.calibration.fisher import FisherLoss
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import dense_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.grouping.planning import plan_by_groups
from pgb_lightning.grouping.reachable import check_reachable
from pgb_lightning.modes import eval_mode
from pgb_lightning.plan import PruningPlan
from pgb_lightning.search.candidates import Candidate, CandidateCost
from pgb_lightning.search.costs import check_target
from pgb_lightning.search.planning import plan_by_shapes
from pgb_lightning.search.widths import check_width_multiple
from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.checks import check_complete, check_prunable


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    config: PruningConfig | None = None,
    *,
    loss: Loss | None = None,
    encoder: str | None = None,
) -> PruningPlan:
    """Prune the encoder of a fine-tuned model in one shot, in place.

    An encoder that an earlier call has pruned to fewer heads, neurons or sublayers can be pruned further. The target is
    always that of the dense encoder: 0.3 and then 0.6 remove 60 % of its weights.

    Args:
        model: A module that holds one transformers encoder; fine-tuned, since importance is derived from its loss or
            predictions.
        batches: Calibration batches, with or without labels, about 2,048 samples in total; read once. If there are no
            labels, a warning names the loss that is used instead (``fisher`` of :class:`PruningConfig`).
        config: The settings; the default preset if omitted.
        loss: Runs ``model`` on a batch and returns the mean loss of its samples, or ``None`` to skip the batch. By
            default a batch is a mapping of the model's arguments, and the model's output has a ``loss`` if labels are
            among them.
        encoder: Attribute path of the encoder; required if ``model`` holds several.

    Returns:
        The plan that was applied.

    Raises:
        ModuleNotFoundError: If a package that ``config.latency_runtime`` needs is not installed.
        TypeError: If a batch is not a mapping, and no ``loss`` is given.
        ValueError: If there is no such encoder, it cannot be pruned (further), the target cannot be reached, a given
            ``importance_threshold`` would remove more, the model does not have what ``config.fisher`` needs, or
            calibration found no usable gradients. The model is unchanged then.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> tiny = BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
        >>> model = BertForSequenceClassification(tiny)
        >>> batch = {"input_ids": torch.randint(9, (8, 5)), "labels": torch.randint(2, (8,))}
        >>> plan = prune(model, [batch], PruningConfig(pruning_ratio=0.5))
        >>> abs(plan.pruning_ratio - 0.5) < 0.01
        True
    """
    config = config or PruningConfig()
    found = prepare(model, config, encoder)
    statistics, fisher_loss = collect_statistics(model, found, batches, config, loss)
    if fisher_loss.reason:
        warnings.warn(f"PGB: {fisher_loss.describe()}.", stacklevel=2)
    plan = record_fisher(make_plan(found, statistics, config), fisher_loss)
    carry_out(found, plan, statistics, config)
    return plan


def prepare(model: nn.Module, config: PruningConfig, encoder: str | None = None) -> Encoder:
    """Find the encoder and make all checks that need no data.

    Raises:
        ModuleNotFoundError: If a package that ``config.latency_runtime`` needs is not installed.
        ValueError: If there is no such encoder, it cannot be pruned (further), it cannot be measured in
            ``config.latency_runtime``, the target cannot be reached, or ``config.width_multiple`` does not divide its
            sizes.
    """
    found = find_encoder(model, encoder)
    check_prunable(found)
    check_target(found, config)
    check_width_multiple(found, config.width_multiple)
    if config.search == "groups":
        check_complete(found)
    if config.search == "groups" and config.importance_threshold == "auto":
        shapes = {key: (linear.in_features, linear.out_features) for key, linear in found.linears()}
        check_reachable(shapes, config, dense_cost(found).parameters)
    return found


def collect_statistics(
    model: nn.Module, encoder: Encoder, batches: Iterable[Any], config: PruningConfig, loss: Loss | None = None
) -> tuple[Calibration, FisherLoss]:
    """Calibrate an encoder, as far as the settings need it, with the model in eval mode.

    Args:
        model: The module that holds the encoder.
        encoder: An encoder that :func:`prepare` accepts.
        batches: Calibration batches; read once.
        config: The settings.
        loss: As for :func:`prune`.

    Returns:
        The statistics, and the loss whose gradients were used.
    """
    fisher_loss = FisherLoss(model, encoder, loss or model_loss(model), config.fisher, config.fisher_temperature)
    with eval_mode(model):
        statistics = calibrate(
            encoder,
            batches,
            fisher_loss,
            max_tokens=config.compensation_tokens,
            moments=config.needs_moments,
            warn=partial(warnings.warn, stacklevel=4),  # at the caller of prune()
            fisher_samples=config.fisher_samples,
        )
    return statistics, fisher_loss


def make_plan(
    encoder: Encoder,
    statistics: Calibration,
    config: PruningConfig,
    candidates: Sequence[Sequence[Candidate]] | None = None,
    cost: CandidateCost | None = None,
) -> PruningPlan:
    """Plan every matrix, without changing the encoder.

    Any number of plans can be made from one calibration.

    Args:
        encoder: An encoder that :func:`prepare` accepts.
        statistics: Its calibration.
        config: The settings, including the target.
        candidates: For ``search="shapes"``, the result of
            :func:`~pgb_lightning.search.candidates.list_candidates`, which does not depend on the ratio.
        cost: For ``search="shapes"``, the cost of a candidate; determined by ``config.budget`` if omitted.

    Returns:
        The plan. A warning is issued if it misses the target by more than one percentage point (three for
        ``budget="latency"``).
    """
    if config.search == "groups":
        return plan_by_groups(encoder, statistics, config)
    return plan_by_shapes(encoder, statistics, config, candidates, cost)


def record_fisher(plan: PruningPlan, loss: FisherLoss) -> PruningPlan:
    """Return a copy of a plan whose settings name the loss that calibration used, in place of ``fisher="auto"``."""
    return replace(plan, config={**plan.config, "fisher": loss.used})


def carry_out(
    encoder: Encoder,
    plan: PruningPlan,
    statistics: Calibration,
    config: PruningConfig,
    all_reduce: AllReduce = lambda tensor: tensor,
    track: Callable[[range], Iterable[int]] = lambda layers: layers,
    errors: FitErrors | None = None,
) -> None:
    """Apply a plan to an encoder, in place, with compensation unless it is disabled.

    Args:
        encoder: The encoder that ``statistics`` belong to.
        plan: The plan.
        statistics: The calibration.
        config: Determines whether and how to compensate.
        all_reduce: Sums a tensor over the processes that share the calibration.
        track: Iterates over the layers, to show progress.
        errors: Records the errors that remain after compensation.
    """
    if config.compensation:
        compensate(encoder, plan, statistics.inputs, config.ridge, all_reduce, track, errors)
    else:
        apply_plan(encoder, plan)
