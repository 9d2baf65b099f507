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

from pgb_lightning.callbacks.pruning.calibration_data import calibration_batches
from pgb_lightning.callbacks.pruning.compatibility import check_callbacks, check_strategy
from pgb_lightning.callbacks.pruning.distributed import prune_distributed
from pgb_lightning.callbacks.pruning.optimizers import check_optimizers
from pgb_lightning.callbacks.pruning.reporting import (
    measure_seconds,
    report_pruning,
    report_speedup,
    save_plan,
    warn_if_dense,
    warn_of_another_target,
    warn_without_dropout,
)
from pgb_lightning.callbacks.pruning.same_start import check_same_start
from pgb_lightning.callbacks.pruning.settings import describe_settings
from pgb_lightning.callbacks.pruning.several import check_encoders, is_built
from pgb_lightning.callbacks.pruning.strategy import Restored, before_strategy_setup, restore_strategy
from pgb_lightning.callbacks.pruning.training_loss import check_training_step
from pgb_lightning.callbacks.random_state import isolated_random_state
from pgb_lightning.callbacks.trainer_queries import shards_before_restore
from pgb_lightning.checkpoints import find_states, state_key
from pgb_lightning.config import Budget, Fisher, LatencyRuntime, Permutation, PruningConfig, Ridge, Search
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import prepare
from pgb_lightning.report import PruningNotes
from pgb_lightning.search.costs import check_runtime_device
from pgb_lightning.surgery.apply import apply_plan
from pgb_lightning.surgery.checks import check_plan, is_pruned, matches
from pgb_lightning.surgery.dense_twin import dense_reference
from pgb_lightning.surgery.from_state_dict import follow_state_dict, follows_state_dict


@describe_settings
class PGBCallback(pl.Callback):
    """Prune the encoder of a fine-tuned module in one shot, then let the Trainer re-finetune it.

    The encoder is found among the submodules. It is pruned once, after the data is set up and before the optimizer is
    created; then training runs as with any module. A checkpoint of the pruned model resumes as usual: its layers are
    rebuilt from the state dict, and nothing is calibrated or pruned again. The applied plan is available as
    :attr:`plan` and is written to ``plan.json`` in the run's folder.

    A module whose encoder was pruned before, to fewer heads, neurons or sublayers, is pruned further. The target always
    refers to the dense encoder and must be larger than what is already removed.

    Calibration samples come from ``calibration_dataloader()`` of the data module (or module) if there is one, else
    from the training set. The loss is that of the module's ``calibration_step(batch)`` if it has this method, else of
    its ``training_step``.

    Calibration reads only rows that training reads, too. Changes that the step and the batch hooks make to Python
    objects are undone if the objects can be reached from the module, its data module or its loaders. Iterators and
    files that have advanced cannot be reset; a warning names them. Changes to global variables, files on disk, other
    processes and state inside C extensions are not detected; define ``calibration_step`` for a module whose
    ``training_step`` makes such changes.

    Settings that are ``None`` take the value of the preset, or the default of
    :class:`~pgb_lightning.PruningConfig`, for which ``pruning_ratio`` is 0.5.

    Args:
        preset: ``"default"``, ``"paper"`` (the published recipe) or ``"balanced"`` (the published recipe with balanced
            permutations). All other settings override the preset's.
        encoder: Attribute path of the encoder, such as ``"model.bert"``; required if the module has several. To prune
            several encoders, use one callback for each.
        calibration: Name of a loader, or of a method that returns one, on the data module or module.
        calibration_size: Number of calibration samples; by default all of ``calibration_dataloader()``, or 2,048
            rows of the training set.
        plan: A ``plan.json`` to apply unchanged, instead of making a plan. It works under any strategy, since nothing
            is calibrated or compensated unless ``compensation=True``.
        {settings}

    Raises:
        MisconfigurationException: If a setting is invalid or the module cannot be pruned; the message names the
            remedy. The module is left unchanged.

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
        search: Search | None = None,
        budget: Budget | None = None,
        target_speedup: float | None = None,
        latency_batch_size: int | None = None,
        latency_length: int | None = None,
        latency_runtime: LatencyRuntime | None = None,
        importance_threshold: float | Literal["auto"] | None = None,
        max_groups: int | None = None,
        width_multiple: int | None = None,
        num_permutations: int | None = None,
        permutation: Permutation | None = None,
        compensation: bool | None = None,
        compensation_tokens: int | None = None,
        ridge: Ridge | None = None,
        fisher: Fisher | None = None,
        fisher_temperature: float | None = None,
        tolerance: float | None = None,
        plan: str | Path | None = None,
    ) -> None:
        super().__init__()
        planning = {
            "pruning_ratio": pruning_ratio,
            "search": search,
            "budget": budget,
            "target_speedup": target_speedup,
            "latency_batch_size": latency_batch_size,
            "latency_length": latency_length,
            "latency_runtime": latency_runtime,
            "importance_threshold": importance_threshold,
            "max_groups": max_groups,
            "width_multiple": width_multiple,
            "num_permutations": num_permutations,
            "permutation": permutation,
            "fisher": fisher,
            "fisher_temperature": fisher_temperature,
            "tolerance": tolerance,
        }
        unused = [f"{name}={value!r}" for name, value in planning.items() if value is not None]
        if plan is not None and unused:
            raise MisconfigurationException(
                f"PGBCallback: plan={str(plan)!r} already determines what is pruned, so {', '.join(unused)} would have "
                "no effect. Leave out either the plan or these settings."
            )
        if pruning_ratio is not None and target_speedup is not None:
            raise MisconfigurationException(
                f"PGBCallback: pruning_ratio={pruning_ratio} and target_speedup={target_speedup} are two targets. Set "
                "one of them to None (in YAML and on the command line: null)."
            )
        with _as_misconfiguration((TypeError, ValueError)):
            self.config = PruningConfig.from_preset(
                preset, **planning, compensation=compensation, compensation_tokens=compensation_tokens, ridge=ridge
            )
            self.given_plan = None if plan is None else PruningPlan.load(plan)
        if calibration_size is not None and (type(calibration_size) is not int or calibration_size < 1):
            raise MisconfigurationException(
                f"PGBCallback: calibration_size={calibration_size!r} is out of range. It must be an integer of at "
                "least 1; the paper uses 2,048."
            )
        self.encoder = encoder
        self.calibration = calibration
        self.calibration_size = calibration_size
        self.calibrates = plan is None or bool(compensation)
        self.plan: PruningPlan | None = None
        self._checked_dropout = False
        #: Record for a report. PGBReport sets it, and pruning fills it.
        self.notes: PruningNotes | None = None

    @property
    def state_key(self) -> str:
        """The key of the callback's state in checkpoints, which depends on ``encoder``."""
        return state_key(type(self).__qualname__, self.encoder)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the settings, module and strategy, and schedule the pruning."""
        follows = follows_state_dict(pl_module)
        follow_state_dict(pl_module)
        if stage != "fit":
            before_strategy_setup(trainer, self, partial(warn_if_dense, pl_module, self.encoder))
            return
        with _as_misconfiguration():
            check_runtime_device(self.config.latency_runtime, trainer.strategy.root_device.type)
        self.check(pl_module)
        self._check_others(trainer, pl_module)
        check_callbacks(trainer)
        check_strategy(trainer, pl_module, follows, self.calibrates)
        if shards_before_restore(trainer) and is_built(pl_module, self.encoder):
            self._prune(trainer, pl_module, restored=None)  # before the weights are sharded
        before_strategy_setup(trainer, self, partial(self._prune, trainer, pl_module))

    def check(self, pl_module: pl.LightningModule) -> None:
        """Check whether a module can be pruned, without any data.

        ``setup`` also calls this, after Lightning has prepared the data. Call it before ``fit`` to fail earlier.

        Args:
            pl_module: The module to be fitted.

        Raises:
            MisconfigurationException: If the module cannot be pruned; the message names the reason and the remedy.
        """
        if is_built(pl_module, self.encoder):
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

    def _check_others(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the Trainer's PGBCallbacks prune different encoders, as far as these are already built."""
        names = [each.encoder for each in _all(trainer)]
        with _as_misconfiguration():
            check_encoders(pl_module, [name for name in names if is_built(pl_module, name)])

    def _label(self, trainer: pl.Trainer) -> str | None:
        """Return the name of the encoder in messages, metrics and files, if the Trainer prunes several."""
        return self.encoder if len(_all(trainer)) > 1 else None

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, restored: Restored | None) -> None:
        """Prune the module, unless it was pruned by an earlier fit or restored from a pruned checkpoint."""
        self._check_others(trainer, pl_module)
        check_same_start(trainer, restored, self.plan or self.given_plan)
        if restored and not restored.trained:
            restored = None  # Its fit was interrupted before pruning.
        with _as_misconfiguration(name=self._label(trainer)):
            encoder = find_encoder(pl_module, self.encoder)
            if self.plan is not None and not matches(encoder, self.plan):
                self.plan = None  # The plan belongs to another fit.
            if self.plan is not None or (restored and is_pruned(encoder)):
                rank_zero_info("PGB: the encoder is already pruned. Re-finetuning continues.")
                warn_of_another_target(encoder, self.config, self.plan, self.given_plan)
            elif restored:
                raise MisconfigurationException(
                    f"PGBCallback: the encoder at {encoder.where} is dense in ckpt_path={str(trainer.ckpt_path)!r}, "
                    "whose optimizer state does not fit a pruned model. Load its weights into the module "
                    "(load_from_checkpoint, or fine_tuned_ckpt of TextClassification) and call fit without ckpt_path. "
                    "If you did not pass this path, Lightning found the file by itself: use another folder."
                )
            else:
                self._prune_now(trainer, pl_module, encoder)
        if self.plan is not None:
            save_plan(trainer, self.plan, self._label(trainer))

    def _prune_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule, encoder: Encoder) -> None:
        self._check_encoder(pl_module, encoder)
        given, before = self.given_plan, encoder_cost(encoder)
        timed = self.config if given is None and self.config.budget == "latency" else None
        if given is not None and given.fingerprint not in ("", fingerprint(encoder)):
            rank_zero_warn("PGB: the plan was made for other weights of the same shapes. It is applied anyway.")
        if self.calibrates:
            trainer.strategy.model_to_device()
            seconds = measure_seconds(dense_reference(encoder), timed) if timed else 0.0
            with isolated_random_state():
                batches = partial(calibration_batches, trainer, pl_module, self.calibration, self.calibration_size)
                self.plan = prune_distributed(trainer, pl_module, encoder, batches, self.config, given, self.notes)
        else:
            assert given is not None
            apply_plan(encoder, given)
            self.plan = given
        if timed:
            report_speedup(trainer, timed, seconds / measure_seconds(encoder, timed), self._label(trainer))
        by_weights = given is None and self.config.budget == "parameters"
        target = self.config.pruning_ratio if by_weights else None
        report_pruning(trainer, self.plan, encoder, before, target, self._label(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Return the plan, to be stored in the checkpoint."""
        return {"plan": self.plan.to_dict() if self.plan else None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the plan from the checkpoint of a resumed fit. Evaluating a checkpoint leaves the plan unchanged."""
        states = find_states(checkpoint["callbacks"], type(self).__qualname__)
        if not states or trainer.state.fn != TrainerFn.FITTING:
            return
        with _as_misconfiguration():
            if self.state_key in states:
                plan = states[self.state_key]["plan"]
                self.plan = PruningPlan.from_dict(plan) if plan else None
            else:  # The encoder had another name, or none, as in checkpoints of release 0.1.0.
                encoder = find_encoder(pl_module, self.encoder)
                plans = [PruningPlan.from_dict(state["plan"]) for state in states.values() if state["plan"]]
                self.plan = next((plan for plan in plans if matches(encoder, plan)), None)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the optimizers hold the parameters of the pruned module."""
        check_optimizers(trainer, pl_module, self.encoder)
        self._checked_dropout = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Warn once per fit if the encoder's dropout is off."""
        if self._checked_dropout:
            return
        self._checked_dropout = True
        warn_without_dropout(pl_module, self.encoder)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the strategy if the fit fails before the pruning."""
        restore_strategy(trainer)


def _all(trainer: pl.Trainer) -> list[PGBCallback]:
    """Return the Trainer's PGBCallbacks."""
    return [each for each in trainer.callbacks if isinstance(each, PGBCallback)]  # type: ignore[attr-defined]


@contextmanager
def _as_misconfiguration(
    kinds: tuple[type[Exception], ...] = (ModuleNotFoundError, ValueError), name: str | None = None
) -> Iterator[None]:
    """Re-raise errors as MisconfigurationException, with the callback's name and that of the encoder, if given."""
    try:
        yield
    except kinds as error:
        where = "" if name is None else f"encoder={name!r}: "
        raise MisconfigurationException(f"PGBCallback: {where}{error}") from error
