"""The whole method on one screen: statistics, plan, surgery."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pgb_lightning.calibration.collect import Calibration, Loss, calibrate
from pgb_lightning.calibration.importance import second_order_importance
from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.compensation.errors import FitErrors
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.grouping.compensated import group_matrices
from pgb_lightning.grouping.group_numbers import ImportanceSummary, MatrixKey
from pgb_lightning.grouping.permutation import Blocks, group
from pgb_lightning.grouping.reachable import MAX_GAP, check_reachable
from pgb_lightning.grouping.threshold import choose_group_numbers
from pgb_lightning.modes import eval_mode
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.search.candidates import Candidate, CandidateCost, list_candidates
from pgb_lightning.search.costs import candidate_cost
from pgb_lightning.search.knapsack import solve_knapsack
from pgb_lightning.search.speedup import meet_speedup
from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.checks import check_dense


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    config: PruningConfig | None = None,
    *,
    loss: Loss | None = None,
    encoder: str | None = None,
) -> PruningPlan:
    """Prune the encoder of a fine-tuned model in one shot, in place.

    Args:
        model: A module that holds one transformers encoder; fine-tuned, since importance is read off its loss.
        batches: Labelled calibration batches, about 2,048 samples in all; read once.
        config: The settings; the default preset if not given.
        loss: Runs ``model`` on a batch and returns the mean loss of its samples. By default the batch is a
            mapping of the model's arguments, labels among them, and the output has a ``loss``.
        encoder: Attribute path of the encoder, needed where ``model`` holds several.

    Returns:
        The plan that was carried out.

    Raises:
        TypeError: A batch is no mapping, and there is no ``loss`` that would understand it.
        ValueError: There is no such encoder, it is grouped already, the target cannot be reached, or
            calibration found no usable gradients. The model is as it was then.

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
    with eval_mode(model):
        statistics = calibrate(
            *(found, batches, loss or _model_loss(model)),
            max_tokens=config.compensation_tokens,
            moments=config.needs_moments,
        )
    plan = make_plan(found, statistics, config)
    carry_out(found, plan, statistics, config)
    return plan


def prepare(model: nn.Module, config: PruningConfig, encoder: str | None = None) -> Encoder:
    """Find the encoder and make all the checks that need no data.

    Raises:
        ValueError: There is no such encoder, it is grouped already, or the target cannot be reached.
    """
    found = find_encoder(model, encoder)
    check_dense(found)
    if config.search == "groups" and config.importance_threshold == "auto":
        shapes = {key: (linear.in_features, linear.out_features) for key, linear in found.linears()}
        check_reachable(shapes, config)
    return found


def make_plan(
    encoder: Encoder,
    statistics: Calibration,
    config: PruningConfig,
    candidates: list[list[Candidate]] | None = None,
    cost: CandidateCost | None = None,
) -> PruningPlan:
    """Decide what becomes of every matrix; nothing is changed.

    Any number of plans can be made from one calibration.

    Args:
        encoder: A dense encoder.
        statistics: What calibration found.
        config: The target and the paper's hyperparameters.
        candidates: Under ``search="shapes"``, what :func:`list_candidates` gives, where it is at hand already: it
            does not depend on the ratio.
        cost: Likewise, what a candidate costs; by ``config.budget`` if not given.

    Returns:
        The plan. If it misses the target by more than a percentage point, a warning says so.
    """
    importances = {
        key: second_order_importance(linear.weight.T, statistics.fisher[key]) for key, linear in encoder.linears()
    }

    identity = fingerprint(encoder)

    def finished(matrices: Iterable[MatrixPlan], **record: Any) -> PruningPlan:
        settings = {**config.to_dict(), **record}
        return PruningPlan(encoder.model_type, tuple(matrices), settings, statistics.num_samples, identity)

    if config.search == "groups":
        summaries = {
            key: ImportanceSummary.from_importance(importance, config.max_groups)
            for key, importance in importances.items()
        }
        numbers, threshold = choose_group_numbers(summaries, config)
        given = group_matrices(encoder, statistics, config, numbers) if config.permutation == "compensated" else {}
        matrices = [plan_matrix(key, importances[key], numbers[key], config, given.get(key)) for key in importances]
        plan = finished(matrices, importance_threshold_used=threshold)
        _report_shortfall(plan.pruning_ratio, config)
        return plan

    options = candidates or list_candidates(encoder, statistics, config)
    cost = cost or candidate_cost(encoder, options, config)

    def plan_at(cut: float) -> tuple[PruningPlan, float]:
        chosen = choose_shapes(options, cut, config.tolerance, cost)
        matrices = (
            replace(matrix, importance_kept=_share_kept(matrix, importances[matrix.layer, matrix.kind]))
            for candidate in chosen
            for matrix in candidate.matrices
        )
        achieved = 1 - sum(map(cost, chosen)) / sum(cost(shapes[0]) for shapes in options)
        return finished(matrices, shapes=[candidate.shape for candidate in chosen]), achieved

    plan, achieved = plan_at(config.cut) if config.budget != "latency" else meet_speedup(encoder, config, plan_at)
    _report_shortfall(achieved, config)
    return plan


def carry_out(
    encoder: Encoder,
    plan: PruningPlan,
    statistics: Calibration,
    config: PruningConfig,
    all_reduce: AllReduce = lambda tensor: tensor,
    track: Callable[[range], Iterable[int]] = lambda layers: layers,
    errors: FitErrors | None = None,
) -> None:
    """Carry out a plan on a dense encoder, in place, with compensation unless it is switched off.

    Args:
        encoder: The dense encoder that ``statistics`` are of.
        plan: What becomes of its matrices.
        statistics: What calibration found.
        config: Says whether and how to compensate.
        all_reduce: Sums a tensor over the processes that share the calibration.
        track: Goes over the layers, to show progress.
        errors: Where compensation notes what is left as error, if anybody wants to know.
    """
    if config.compensation:
        compensate(encoder, plan, statistics.inputs, config.ridge, all_reduce, track, errors)
    else:
        apply_plan(encoder, plan)


def plan_matrix(
    key: MatrixKey, importance: Tensor, num_groups: int, config: PruningConfig, groups: Blocks | None = None
) -> MatrixPlan:
    """Group one matrix (Algorithm 2), unless its groups are given."""
    layer, kind = key
    rows, columns = importance.shape
    exact = importance.double()
    total = float(exact.sum())
    if num_groups == 0:
        return MatrixPlan(layer, kind, rows, columns, (), (), 0.0, total / 2)
    if num_groups == 1:
        return MatrixPlan(layer, kind, rows, columns, None, None, 1.0, 0.0)
    groups = groups or group(importance, num_groups, config.permutation, config.num_permutations)
    kept = float(groups.kept_importance(exact).sum())
    return MatrixPlan(
        *(layer, kind, rows, columns),
        input_index=tuple(map(tuple, groups.rows.tolist())),
        output_index=tuple(map(tuple, groups.columns.tolist())),
        importance_kept=kept / max(total, 1e-300),
        predicted_error=(total - kept) / 2,
    )


def choose_shapes(
    candidates: list[list[Candidate]], ratio: float, tolerance: float, cost: CandidateCost
) -> list[Candidate]:
    """Choose one candidate of each sublayer: the least predicted loss within the budget."""
    costs = [[cost(candidate) for candidate in options] for options in candidates]
    losses = [[candidate.loss for candidate in options] for options in candidates]
    total = sum(options[0] for options in costs)
    places = solve_knapsack(losses, costs, (1 - ratio) * total, tolerance * total)
    return [options[place] for options, place in zip(candidates, places, strict=True)]


def _share_kept(matrix: MatrixPlan, importance: Tensor) -> float:
    """Return the share of a matrix's importance that lies in its blocks."""
    if matrix.input_index is None or matrix.output_index is None:
        return 1.0
    if not matrix.num_groups:
        return 0.0
    groups = Blocks(torch.tensor(matrix.input_index), torch.tensor(matrix.output_index))
    exact = importance.double().cpu()
    return min(float(groups.kept_importance(exact).sum()) / max(float(exact.sum()), 1e-300), 1.0)


def _report_shortfall(achieved: float, config: PruningConfig) -> None:
    """Say loudly when the target was missed."""
    gap = achieved - config.cut
    # Time is measured, and never twice the same.
    if abs(gap) > (MAX_GAP if config.budget != "latency" else 3 * MAX_GAP):
        ratio, speedup = config.pruning_ratio, config.target_speedup
        asked = f"pruning_ratio={ratio}" if speedup is None else f"target_speedup={speedup}"
        unit = {"parameters": "weights", "flops": "FLOPs", "latency": "time"}[config.budget]
        remedy = "that is the nearest this model's importances allow"
        if config.search == "shapes":
            remedy = "no shapes of its sublayers remove more"
            if gap > 0:
                remedy = "no shapes of its sublayers come nearer without removing less than was asked for"
        if config.importance_threshold != "auto":
            remedy = 'use importance_threshold="auto" to meet the target'
        elif config.budget == "latency":
            remedy = "that is the nearest of what was measured, and the rest of a layer costs time whatever is pruned"
        warnings.warn(
            f"{asked} was asked for, but the plan removes {achieved:.4f} of the encoder's {unit}; {remedy}.",
            stacklevel=3,
        )


def _model_loss(model: nn.Module) -> Loss:
    """Read the loss off a transformers model's output."""

    def loss(batch: Any) -> Tensor:
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"a batch is a {type(batch).__name__}, not a mapping of the model's arguments: give batches such as "
                "{'input_ids': ..., 'attention_mask': ..., 'labels': ...}, or loss=, a function of a batch."
            )
        output = model(**batch)
        if getattr(output, "loss", None) is None:
            raise ValueError(
                f"{type(model).__name__} returned no loss: give batches with labels, or loss=, a function of a batch."
            )
        return output.loss  # type: ignore[no-any-return]

    return loss
