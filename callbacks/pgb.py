"""Prune a fine-tuned encoder as ``trainer.fit`` starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm.auto import tqdm

from pgb_lightning.architectures import Encoder, find_encoder, find_encoders
from pgb_lightning.calibration import calibrate
from pgb_lightning.callbacks.samples import calibration_batches, share_of_rank
from pgb_lightning.callbacks.strategy import before_strategy_setup
from pgb_lightning.callbacks.training_loss import check_training_step, training_loss, undisturbed
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import encoder_cost
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import carry_out, make_plan, prepare
from pgb_lightning.report import plan_table, render
from pgb_lightning.surgery import follow_state_dict, is_grouped


class PGBCallback(pl.Callback):
    """Prune the encoder of a fine-tuned module in one shot, then let the Trainer re-finetune it.

    The encoder is found by walking the module. Pruning happens once, after the data is set up and before the
    optimizer exists; training then goes on as with any module. A checkpoint of the pruned model resumes as
    usual: the grouped layers are rebuilt from it, and nothing is calibrated or pruned again.

    Calibration samples come from ``calibration_dataloader()`` of the data module (or module) if there is one, else
    from the training set; the loss is that of the module's own ``training_step``, or of ``calibration_step(batch)``
    where it has one.

    Args:
        pruning_ratio: Share of the encoder's Q, K, V, O, W1 and W2 weights to remove, in (0, 1).
        preset: ``"default"``, or ``"paper"`` for the published recipe; the settings below replace the preset's.
        encoder: Attribute path of the encoder, such as ``"model.bert"``; needed where there are several.
        calibration: Name of a loader, or of a method that returns one, on the data module or module.
        calibration_size: Number of calibration samples; by default all of ``calibration_dataloader()``, or 2,048
            rows of the training set.
        importance_threshold: τ, or ``"auto"`` to find the one that meets ``pruning_ratio``.
        max_groups: G_max.
        num_permutations: N_perm.
        permutation: ``"greedy"`` (the paper's) or ``"balanced"``.
        compensation: Whether to refit the kept weights (Eq. 4).
        compensation_tokens: Tokens on which they are refitted, at most.
        ridge: Pull towards the original weights in Eq. 4.
        tolerance: Largest accepted distance from ``pruning_ratio`` under ``importance_threshold="auto"``.

    Raises:
        MisconfigurationException: A setting is out of range, or the module cannot be pruned; the message says
            what to do. Nothing is changed then.

    Example:
        >>> trainer = pl.Trainer(max_epochs=3, callbacks=[PGBCallback(pruning_ratio=0.5)], logger=False,
        ...                      enable_progress_bar=False, enable_model_summary=False)
        >>> # trainer.fit(fine_tuned_module, datamodule=datamodule)
    """

    def __init__(
        self,
        pruning_ratio: float = 0.5,
        preset: str = "default",
        encoder: str | None = None,
        calibration: str | None = None,
        calibration_size: int | None = None,
        importance_threshold: float | Literal["auto"] | None = None,
        max_groups: int | None = None,
        num_permutations: int | None = None,
        permutation: Literal["greedy", "balanced"] | None = None,
        compensation: bool | None = None,
        compensation_tokens: int | None = None,
        ridge: float | None = None,
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        try:
            self.config = PruningConfig.from_preset(
                preset,
                pruning_ratio=pruning_ratio,
                importance_threshold=importance_threshold,
                max_groups=max_groups,
                num_permutations=num_permutations,
                permutation=permutation,
                compensation=compensation,
                compensation_tokens=compensation_tokens,
                ridge=ridge,
                tolerance=tolerance,
            )
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"PGBCallback: {error}") from error
        if calibration_size is not None and (type(calibration_size) is not int or calibration_size < 1):
            raise MisconfigurationException(
                f"PGBCallback: calibration_size={calibration_size!r} is out of range: it must be a whole number of "
                "at least 1; the paper uses 2,048."
            )
        self.encoder = encoder
        self.calibration = calibration
        self.calibration_size = calibration_size
        self.plan: PruningPlan | None = None
        self._resuming = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check all that can be checked without data, and arrange for the pruning."""
        follow_state_dict(pl_module)
        if stage != "fit":
            return
        self._resuming = False
        self.check(pl_module)
        averaging = (WeightAveraging, StochasticWeightAveraging)
        found = [type(callback).__name__ for callback in _callbacks(trainer) if isinstance(callback, averaging)]
        if found:
            raise MisconfigurationException(
                f"PGBCallback cannot share a fit with {found[0]}, which copies the module before it is pruned: prune "
                "in a fit of its own (max_epochs=0 will do), then re-finetune the pruned module with averaging."
            )
        before_strategy_setup(trainer, partial(self._prune, trainer, pl_module))

    def check(self, pl_module: pl.LightningModule) -> None:
        """Check a module without any data, as far as it is built yet.

        Lightning prepares data before it sets callbacks up; who wants to know earlier can ask here.

        Args:
            pl_module: The module that is going to be fitted.

        Raises:
            MisconfigurationException: It cannot be pruned; the message says why, and what to do.
        """
        # Callbacks are set up before the module, which may build its network in hooks of its own.
        built_late = any(is_overridden(hook, pl_module) for hook in ("setup", "configure_model"))
        if find_encoders(pl_module) or not built_late:
            with _as_misconfiguration():
                if not is_grouped(find_encoder(pl_module, self.encoder)):
                    prepare(pl_module, self.config, self.encoder)
        check_training_step(pl_module)

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, unless the module came back pruned from a checkpoint or an earlier fit."""
        with _as_misconfiguration():
            encoder = find_encoder(pl_module, self.encoder)
            if is_grouped(encoder) and (self._resuming or self.plan is not None):
                rank_zero_info("PGB: the encoder is pruned already; re-finetuning goes on.")
                return
            if self._resuming:
                raise MisconfigurationException(
                    "PGBCallback: ckpt_path is a checkpoint of the dense model, whose optimizer cannot go on with a "
                    "pruned one. Load its weights into the module (load_from_checkpoint, or fine_tuned_ckpt of "
                    "TextClassification) and call fit without ckpt_path."
                )
            encoder = prepare(pl_module, self.config, self.encoder)
            trainer.strategy.model_to_device()
            before = encoder_cost(encoder)
            with isolate_rng():
                self.plan = self._calibrate_and_prune(trainer, pl_module, encoder)
        self._report(trainer, encoder, before.parameters, before.flops)

    def _calibrate_and_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, encoder: Encoder) -> PruningPlan:
        """Share the calibration out over the ranks, decide on one of them, and carry the plan out on all."""
        strategy = trainer.strategy
        all_reduce = partial(strategy.reduce, reduce_op="sum")
        batches = calibration_batches(trainer, pl_module, self.calibration, self.calibration_size)
        share = share_of_rank(batches, trainer.global_rank, trainer.world_size)
        with undisturbed(pl_module):
            loss = training_loss(trainer, pl_module)
            tracked = self._track(trainer, "PGB calibration", share)
            statistics = calibrate(encoder, tracked, loss, all_reduce, self.config.compensation_tokens)
        plan = make_plan(encoder, statistics, self.config) if trainer.is_global_zero else None
        plan = strategy.broadcast(plan)
        assert plan is not None
        track = partial(self._track, trainer, "PGB compensation")
        carry_out(encoder, plan, statistics, self.config, all_reduce, track)
        return plan

    def _report(self, trainer: pl.Trainer, encoder: Encoder, parameters: int, flops: int) -> None:
        """Say and log what was achieved, counted from the modules."""
        assert self.plan is not None
        after = encoder_cost(encoder)
        achieved = {
            "pgb/pruning_ratio": 1 - after.parameters / parameters,
            "pgb/flops_ratio": 1 - after.flops / flops,
            "pgb/encoder_parameters": float(after.parameters),
            "pgb/encoder_flops": float(after.flops),
        }
        rank_zero_info(render(plan_table(self.plan)))
        rank_zero_info(
            f"PGB removed {achieved['pgb/pruning_ratio']:.2%} of {parameters:,} encoder weights (target "
            f"{self.config.pruning_ratio:.2%}): {after.parameters:,} are left, with "
            f"{1 - achieved['pgb/flops_ratio']:.2%} of the FLOPs at length 128."
        )
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(achieved, step=0)

    def state_dict(self) -> dict[str, Any]:
        """Keep the plan with the checkpoint."""
        return {"plan": self.plan.to_dict() if self.plan else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the plan from a checkpoint."""
        plan = state_dict.get("plan")
        self.plan = PruningPlan.from_dict(plan) if plan else None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that the weights now come from a checkpoint."""
        self._resuming = True

    def _track(self, trainer: pl.Trainer, description: str, items: Iterable[Any]) -> Iterable[Any]:
        """Show progress where the Trainer shows progress."""
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
        tracked: Iterable[Any] = tqdm(items, desc=description, disable=not shown)
        return tracked


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


@contextmanager
def _as_misconfiguration() -> Iterator[None]:
    """Raise what the method refuses as Lightning users expect it."""
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(f"PGBCallback: {error}") from error
