"""Report the result of pruning: print and log it, save the plan, and warn about unexpected situations."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from pgb_lightning.callbacks.trainer_queries import run_folder
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import Cost, dense_cost, encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.latency import measure_encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import plan_table, render
from pgb_lightning.surgery.checks import is_pruned, matches

PLAN_FILE = "plan.json"


def report_pruning(
    trainer: pl.Trainer,
    plan: PruningPlan,
    encoder: Encoder,
    before: Cost,
    target: float | None,
    label: str | None = None,
) -> None:
    """Print and log the size of the pruned encoder, counted from its modules.

    Args:
        trainer: The Trainer; its loggers get four ``pgb/...`` metrics at step 0.
        plan: The plan that was applied.
        encoder: The pruned encoder.
        before: The cost of the encoder before this pruning.
        target: The requested pruning ratio, if there was one.
        label: The name of the encoder in a Trainer that prunes several.
    """
    after, dense = encoder_cost(encoder), dense_cost(encoder)
    removed, removed_flops = 1 - after.parameters / dense.parameters, 1 - after.flops / dense.flops
    earlier = 1 - before.parameters / dense.parameters
    since = f"; {earlier:.2%} were removed before" if earlier else ""
    goal = "as planned" if target is None else f"target {target:.2%}"
    weights = "encoder weights" if label is None else f"weights of {label!r}"
    table = plan_table(plan)
    if label is not None:
        table.title = f"{label}: {table.title}"
    rank_zero_info(render(table))
    rank_zero_info(
        f"PGB removed {removed:.2%} of {dense.parameters:,} {weights} ({goal}{since}). "
        f"Kept: {after.parameters:,} weights and {1 - removed_flops:.2%} of the FLOPs at length 128."
    )
    metrics = {
        "pruning_ratio": removed,
        "flops_ratio": removed_flops,
        "encoder_parameters": float(after.parameters),
        "encoder_flops": float(after.flops),
    }
    _log(trainer, metrics, label)


def measure_seconds(encoder: Encoder, config: PruningConfig) -> float:
    """Return the latency of the encoder's layers in seconds per batch, with the sizes and runtime of the settings."""
    return measure_encoder(encoder, config.latency_batch_size, config.latency_length, config.latency_runtime)


def report_speedup(trainer: pl.Trainer, config: PruningConfig, speedup: float, label: str | None = None) -> None:
    """Print and log the measured speedup of the encoder's layers.

    Args:
        trainer: The Trainer; its loggers get ``pgb/speedup`` at step 0.
        config: The settings, with the target.
        speedup: The measured speedup.
        label: The name of the encoder in a Trainer that prunes several.
    """
    target = 1 / (1 - config.cut)
    size = f"batch {config.latency_batch_size} x length {config.latency_length}"
    if config.latency_runtime != "torch":
        size += f" in {config.latency_runtime}"
    layers = "the encoder's layers" if label is None else f"the layers of {label!r}"
    rank_zero_info(f"PGB: measured speedup of {layers} at {size}: {speedup:.2f} (target {target:.2f}).")
    if config.latency_runtime == "torch" and trainer.precision != "32-true":
        rank_zero_warn(
            f"PGB: the speedup was measured in the precision in which the module was built. With precision="
            f"{trainer.precision!r} it may differ; measure the re-finetuned model."
        )
    _log(trainer, {"speedup": speedup}, label)


def save_plan(trainer: pl.Trainer, plan: PruningPlan, label: str | None = None) -> None:
    """Write the plan to the run's folder, if the run has one. An existing file is replaced.

    Args:
        trainer: The Trainer.
        plan: The plan.
        label: The name of the encoder in a Trainer that prunes several: the file is then ``plan-LABEL.json`` instead of
            ``plan.json``.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder is None:
        return
    path = folder / (PLAN_FILE if label is None else f"plan-{label}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
    except OSError as error:  # The fit continues: checkpoints hold the plan too.
        rank_zero_warn(f"PGB could not write the plan to {path}: {error}.")
    else:
        rank_zero_info(f"PGB wrote the plan to {path}.")


def warn_of_another_target(
    encoder: Encoder, config: PruningConfig, plan: PruningPlan | None, given: PruningPlan | None
) -> None:
    """Warn if a pruned encoder, which a resumed fit does not change, does not match the settings.

    Args:
        encoder: The pruned encoder.
        config: The settings.
        plan: The plan with which it was pruned, if known.
        given: The plan that was passed to the callback, if any.
    """
    if given and not matches(encoder, given):
        rank_zero_warn("PGB: the encoder was pruned by a plan other than the given one. It stays unchanged.")
    known = {} if plan is None or given else plan.config
    names = [name for name in ("pruning_ratio", "target_speedup") if name in known]
    others = [f"{name}={known[name]}" for name in names if known[name] != getattr(config, name)]
    if others:
        rank_zero_warn(
            f"PGB: the encoder was pruned with {', '.join(others)}, which is not the setting of this callback. It "
            "stays unchanged, since a resumed fit does not prune. To prune it further, load its weights into the "
            "module (load_from_checkpoint) and call fit without ckpt_path."
        )


def warn_if_dense(pl_module: pl.LightningModule, name: str | None, restored: object) -> None:
    """Warn if a module that is about to be evaluated has not been pruned.

    Args:
        pl_module: The module.
        name: Attribute path of the encoder to be pruned; ``None`` for any.
        restored: The checkpoint that was restored, if any.
    """
    try:
        encoders = find_encoders(pl_module) if name is None else [find_encoder(pl_module, name)]
    except ValueError:  # Modules without this encoder can be evaluated, too.
        return
    if encoders and not any(map(is_pruned, encoders)):
        which = "the encoder" if name is None else f"encoder={name!r}"
        source = "in this checkpoint" if restored else "in this module"
        rank_zero_warn(f"PGB: {which} {source} is not pruned. Pass the ckpt_path of a pruned model, or fit first.")


def warn_without_dropout(pl_module: pl.LightningModule, name: str | None) -> None:
    """Warn if dropout is off in training.

    Args:
        pl_module: The module in training.
        name: Attribute path of the encoder, if the module has several.
    """
    # Check all encoders: a module may copy its own after pruning, for example to average weights.
    encoders = find_encoders(pl_module.get_submodule(name or ""))
    modules = [module for encoder in encoders for module in encoder.model.modules()]
    modes = [module.training for module in modules if isinstance(module, nn.Dropout) and module.p > 0]
    if modes and not any(modes):
        rank_zero_warn(
            "PGB: the encoder is in eval mode, so it is re-finetuned without dropout. from_pretrained returns "
            "models in eval mode, and Lightning does not change modes. Call .train() on it after building it."
        )


def _log(trainer: pl.Trainer, metrics: dict[str, float], label: str | None) -> None:
    prefix = "pgb" if label is None else f"pgb/{label}"
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics({f"{prefix}/{name}": value for name, value in metrics.items()}, step=0)
