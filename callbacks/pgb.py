"""Prune a fine-tuned encoder as ``trainer.fit`` starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from pgb_lightning.callbacks.pruning.announcements import mention_dense, report, report_speed, time_encoder, write_plan
from pgb_lightning.callbacks.pruning.calibration_data import calibration_batches
from pgb_lightning.callbacks.pruning.compatibility import check_no_averaging, check_optimizers
from pgb_lightning.callbacks.pruning.distributed import prune_together
from pgb_lightning.callbacks.pruning.strategy import before_strategy_setup, call_off, check_strategy
from pgb_lightning.callbacks.pruning.training_loss import check_training_step
from pgb_lightning.callbacks.trainer_queries import shards_first
from pgb_lightning.config import PruningConfig
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import prepare
from pgb_lightning.report import PruningNotes
from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.checks import check_plan, is_pruned, matches
from pgb_lightning.surgery.from_state_dict import follow_state_dict, follows_state_dict


class PGBCallback(pl.Callback):
    """Prune the encoder of a fine-tuned module in one shot, then let the Trainer re-finetune it.

    The encoder is found by walking the module. Pruning happens once, after the data is set up and before the
    optimizer exists; training then goes on as with any module. A checkpoint of the pruned model resumes as
    usual: the grouped layers are rebuilt from it, and nothing is calibrated or pruned again. The plan that was carried
    out is :attr:`plan`, and ``plan.json`` in the run's folder.

    Calibration samples come from ``calibration_dataloader()`` of the data module (or module) if there is one, else
    from the training set; the loss is that of the module's own ``training_step``, or of ``calibration_step(batch)``
    where it has one.

    Args:
        pruning_ratio: Share of the encoder's Q, K, V, O, W1 and W2 weights to remove, in (0, 1); 0.5 if not given.
        preset: ``"default"``; ``"paper"`` for the published recipe, ``"balanced"`` for the same with balanced
            permutations; the settings below replace the preset's.
        encoder: Attribute path of the encoder, such as ``"model.bert"``; needed where there are several.
        calibration: Name of a loader, or of a method that returns one, on the data module or module.
        calibration_size: Number of calibration samples; by default all of ``calibration_dataloader()``, or 2,048
            rows of the training set.
        search: ``"groups"`` for Algorithm 1, ``"shapes"`` to search over heads, neurons and groups.
        budget: What ``pruning_ratio`` is a share of: ``"parameters"``, ``"flops"``, or ``"latency"`` on this device.
        target_speedup: How many times faster the encoder's layers shall be, in place of ``pruning_ratio``.
        latency_batch_size: Sequences in a batch for which time is budgeted.
        latency_length: Tokens of each.
        importance_threshold: τ, or ``"auto"`` to find the one that meets ``pruning_ratio``.
        max_groups: G_max.
        num_permutations: N_perm.
        permutation: ``"greedy"`` (the paper's), ``"balanced"`` or ``"compensated"``.
        compensation: Whether to refit the kept weights (Eq. 4); by default yes, but not with a given plan.
        compensation_tokens: Tokens on which they are refitted, at most.
        ridge: Pull towards the original weights in Eq. 4, or ``"auto"`` to choose it by held-out samples.
        tolerance: Largest accepted distance from ``pruning_ratio`` under ``importance_threshold="auto"``.
        plan: A ``plan.json`` to carry out as it is. Nothing is decided then, and nothing calibrated unless
            ``compensation=True``, so any strategy will do.

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
        pruning_ratio: float | None = None,
        preset: str = "default",
        encoder: str | None = None,
        calibration: str | None = None,
        calibration_size: int | None = None,
        search: Literal["groups", "shapes"] | None = None,
        budget: Literal["parameters", "flops", "latency"] | None = None,
        target_speedup: float | None = None,
        latency_batch_size: int | None = None,
        latency_length: int | None = None,
        importance_threshold: float | Literal["auto"] | None = None,
        max_groups: int | None = None,
        num_permutations: int | None = None,
        permutation: Literal["greedy", "balanced", "compensated"] | None = None,
        compensation: bool | None = None,
        compensation_tokens: int | None = None,
        ridge: float | Literal["auto"] | None = None,
        tolerance: float | None = None,
        plan: str | Path | None = None,
    ) -> None:
        super().__init__()
        deciding = {
            "pruning_ratio": pruning_ratio,
            "search": search,
            "budget": budget,
            "target_speedup": target_speedup,
            "latency_batch_size": latency_batch_size,
            "latency_length": latency_length,
            "importance_threshold": importance_threshold,
            "max_groups": max_groups,
            "num_permutations": num_permutations,
            "permutation": permutation,
            "tolerance": tolerance,
        }
        doing = {"compensation": compensation, "compensation_tokens": compensation_tokens, "ridge": ridge}
        idle = [f"{name}={value!r}" for name, value in deciding.items() if plan is not None and value is not None]
        if idle:
            raise MisconfigurationException(
                f"PGBCallback: plan={str(plan)!r} has decided what is pruned, so {', '.join(idle)} would change "
                "nothing; leave out the one or the other."
            )
        if pruning_ratio is not None and target_speedup is not None:
            raise MisconfigurationException(
                f"PGBCallback: pruning_ratio={pruning_ratio} and target_speedup={target_speedup} are two targets; give "
                "one of them, and None for the other (in YAML and on the command line: null)."
            )
        with _as_misconfiguration((TypeError, ValueError)):
            self.config = PruningConfig.from_preset(preset, **deciding, **doing)
            self.given_plan = None if plan is None else PruningPlan.load(plan)
        if calibration_size is not None and (type(calibration_size) is not int or calibration_size < 1):
            raise MisconfigurationException(
                f"PGBCallback: calibration_size={calibration_size!r} is out of range: it must be a whole number of "
                "at least 1; the paper uses 2,048."
            )
        self.encoder = encoder
        self.calibration = calibration
        self.calibration_size = calibration_size
        self.calibrates = plan is None or bool(compensation)
        self.plan: PruningPlan | None = None
        self._looked_for_dropout = False
        #: Where to note what a report wants to know of the pruning; whoever wants to puts it here before the fit.
        self.notes: PruningNotes | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check all that can be checked without data, and arrange for the pruning."""
        follows = follows_state_dict(pl_module)
        follow_state_dict(pl_module)
        if stage != "fit":
            before_strategy_setup(trainer, partial(mention_dense, pl_module))
            return
        self.check(pl_module)
        check_no_averaging(trainer)
        check_strategy(trainer, pl_module, follows, self.calibrates)
        if shards_first(trainer) and find_encoders(pl_module):
            self._prune(trainer, pl_module, restored=False)  # while the weights are whole
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
                encoder = find_encoder(pl_module, self.encoder)
                if not is_pruned(encoder):
                    self._check_encoder(pl_module, encoder)
        if self.calibrates:
            check_training_step(pl_module)

    def _check_encoder(self, pl_module: pl.LightningModule, encoder: Encoder) -> None:
        if self.given_plan is None:
            prepare(pl_module, self.config, self.encoder)
        else:
            check_plan(encoder, self.given_plan)

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, restored: bool) -> None:
        """Prune, unless the module came back pruned from a checkpoint or an earlier fit."""
        with _as_misconfiguration():
            encoder = find_encoder(pl_module, self.encoder)
            if self.plan is not None and not matches(encoder, self.plan):
                self.plan = None  # of another fit
            if self.plan is not None or (restored and is_pruned(encoder)):
                rank_zero_info("PGB: the encoder is pruned already; re-finetuning goes on.")
                if self.given_plan and not matches(encoder, self.given_plan):
                    rank_zero_warn("PGB: the encoder was pruned by another plan than the one given; it stays as it is.")
            elif restored:
                raise MisconfigurationException(
                    "PGBCallback: ckpt_path is a checkpoint of the dense model, whose optimizer cannot go on with a "
                    "pruned one. Load its weights into the module (load_from_checkpoint, or fine_tuned_ckpt of "
                    "TextClassification) and call fit without ckpt_path."
                )
            else:
                self._prune_dense(trainer, pl_module, encoder)
        if self.plan is not None:
            write_plan(trainer, self.plan)

    def _prune_dense(self, trainer: pl.Trainer, pl_module: pl.LightningModule, encoder: Encoder) -> None:
        self._check_encoder(pl_module, encoder)
        given, before = self.given_plan, encoder_cost(encoder)
        timed = self.config if given is None and self.config.budget == "latency" else None
        if given is not None and given.fingerprint not in ("", fingerprint(encoder)):
            rank_zero_warn("PGB: the plan was made for other weights of this shape; it is carried out all the same.")
        if self.calibrates:
            trainer.strategy.model_to_device()
            seconds = time_encoder(encoder, timed) if timed else 0.0
            with isolate_rng():
                batches = calibration_batches(trainer, pl_module, self.calibration, self.calibration_size)
                self.plan = prune_together(trainer, pl_module, encoder, batches, self.config, given, self.notes)
        else:
            assert given is not None
            apply_plan(encoder, given)
            self.plan = given
        if timed:
            report_speed(trainer, timed, seconds / time_encoder(encoder, timed))
        by_weights = given is None and self.config.budget == "parameters"
        report(trainer, self.plan, encoder, before, self.config.pruning_ratio if by_weights else None)

    def state_dict(self) -> dict[str, Any]:
        """Keep the plan with the checkpoint."""
        return {"plan": self.plan.to_dict() if self.plan else None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the plan from the checkpoint of a fit that goes on; evaluating one leaves this fit's plan."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            with _as_misconfiguration():
                self.plan = PruningPlan.from_dict(state["plan"]) if state["plan"] else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse optimizers that hold parameters from before the pruning."""
        check_optimizers(trainer, pl_module)
        self._looked_for_dropout = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Mention, once a fit, an encoder whose dropout is switched off."""
        if self._looked_for_dropout:
            return
        self._looked_for_dropout = True
        modules = find_encoder(pl_module, self.encoder).model.modules()
        modes = [module.training for module in modules if isinstance(module, nn.Dropout) and module.p > 0]
        if modes and not any(modes):
            rank_zero_warn(
                "PGB: the encoder is in eval mode, as from_pretrained returns it and Lightning leaves it, so it is "
                "re-finetuned without dropout; call .train() on it where it is built, unless that is what you want."
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the strategy as it was if the fit fails before the pruning."""
        call_off(trainer)


@contextmanager
def _as_misconfiguration(kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Raise what the method refuses as Lightning users expect it."""
    try:
        yield
    except kinds as error:
        raise MisconfigurationException(f"PGBCallback: {error}") from error
