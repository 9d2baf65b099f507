"""Save the best and the last checkpoint of a run under fixed names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any
from weakref import proxy

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pgb_lightning.callbacks.metric_mode import Mode, contradicts, infer_mode
from pgb_lightning.callbacks.trainer_queries import as_number, logged_since


class BestCheckpoint(ModelCheckpoint):
    """Save the best epoch as ``best.ckpt`` and the last epoch as ``last.ckpt``, under the same names in every run.

    ``best.ckpt`` holds the weights that were scored. In an epoch without a new score (no validation, or the metric was
    not logged), only ``last.ckpt`` is saved. NaN and infinite scores never count as the best. Both checkpoints are
    saved at the end of an epoch, so resuming from them is exact; after a validation within an epoch, and before
    training, ``best.ckpt`` is saved immediately.

    A second run with the same folder replaces both files. A resumed run keeps the best score so far.

    Args:
        dirpath: Folder for the two files.
        monitor: Name of the logged metric that selects the best epoch, such as ``"val_accuracy"``.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is better. By default it is inferred from the name:
            ``"min"`` for losses and errors, ``"max"`` for scores. Required for other names.
        before_training: Whether the weights before the first step, such as those of a pruned model, count as an epoch
            too. They are scored by the sanity check, which must use all validation rows (``num_sanity_val_steps=-1``).

    Raises:
        MisconfigurationException: If ``mode`` is invalid, contradicts the name of the metric, or is required, or if
            ``before_training`` is set and the Trainer does not validate all rows before training.

    Example:
        >>> BestCheckpoint("runs/sst2/finetune", monitor="val_accuracy").mode
        'max'
    """

    def __init__(self, dirpath: str, monitor: str, mode: Mode | None = None, before_training: bool = False) -> None:
        self._settings: dict[str, Any] = {"dirpath": dirpath, "monitor": monitor, "mode": _check_mode(monitor, mode)}
        self._start_over()
        self.before_training = before_training
        self._at_start: dict[str, Any] = {}
        self._before_epoch: dict[str, Any] = {}
        self._before_validation: dict[str, Any] = {}
        self._validated = False
        self._scored_step: int | None = None
        self._said: set[str] = set()
        if mode is None and self.mode == "min":
            rank_zero_info(
                f"BestCheckpoint: monitor={monitor!r} is a loss or an error, so the lowest value is the best. Set "
                "mode='min' to silence this message."
            )

    def _start_over(self) -> None:
        """Forget the best score, as in a new object."""
        super().__init__(**self._settings, filename="best", enable_version_counter=False)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that no other callback saves to the same folder."""
        super().setup(trainer, pl_module, stage)
        others = [each for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)]
        if any(each.dirpath == self.dirpath for each in others if each is not self):
            raise MisconfigurationException(
                f"BestCheckpoint: dirpath={self.dirpath!r} is set in two callbacks, which would replace each other's "
                "best.ckpt. Set another dirpath in one of them."
            )
        self._at_start = {}
        validates_all = trainer.num_sanity_val_steps == math.inf or trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.before_training and stage == "fit" and not validates_all:
            raise MisconfigurationException(
                f"BestCheckpoint: before_training=True needs a score of all validation rows before training, but "
                f"num_sanity_val_steps={trainer.num_sanity_val_steps}. Set num_sanity_val_steps=-1 in the Trainer, or "
                "before_training=False."
            )

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Warn if the resumed run selected its best epoch by another metric or mode."""
        states = checkpoint["callbacks"]
        if trainer.state.fn != TrainerFn.FITTING or self.state_key in states:
            return
        for key, state in states.items():
            if str(key).startswith("BestCheckpoint") and state.get("dirpath") == self.dirpath:
                rank_zero_warn(
                    f"BestCheckpoint: ckpt_path was saved with monitor={state.get('monitor')!r} and "
                    f"mode={state.get('mode', 'max')!r}, but this run has monitor={self.monitor!r} and "
                    f"mode={self.mode!r}. The best score so far is not kept, and best.ckpt will be replaced."
                )

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the metrics before training, which Lightning resets."""
        if self.before_training:
            self._at_start = dict(trainer.callback_metrics)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start over in a new run, or if the best checkpoint of the resumed run is missing."""
        super().on_train_start(trainer, pl_module)
        is_new = trainer.global_step == 0 and trainer.ckpt_path is None
        if is_new:  # Lightning keeps the best score of a previous fit, even of another module.
            self._start_over()
        elif self.best_model_path and not self.file_exists(self.best_model_path, trainer):
            rank_zero_warn(f"BestCheckpoint: {self.best_model_path} is missing, so the best score so far is not kept.")
            self._start_over()
        self._before_epoch, self._validated, self._scored_step, self._said = {}, False, None, set()
        if is_new and self.before_training:
            self._save_if_best(trainer, self._at_start)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record which metrics earlier epochs logged."""
        self._before_epoch, self._validated, self._scored_step = dict(trainer.callback_metrics), False, None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record which metrics earlier validations logged."""
        self._before_validation = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights of a validation within an epoch; ``on_train_epoch_end`` saves those of one at its end."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validated = True
        logged = logged_since(trainer, self._before_validation)
        if self.monitor in logged:
            self._scored_step = trainer.global_step
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_if_best(trainer, logged)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last checkpoint, and the best one if the epoch is the best.

        The checkpoints are saved here since resuming is exact only from the end of an epoch.
        """
        logged = logged_since(trainer, self._before_epoch)
        if self.monitor not in logged:
            if self._validated or not trainer.enable_validation:
                self._say_missing(trainer)
            logged = {}
        elif self._scored_step not in (None, trainer.global_step):
            logged = {}  # The score is that of earlier weights.
        self._save_if_best(trainer, logged)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.last_model_path = self.format_checkpoint_name({}, "last")
            trainer.save_checkpoint(self.last_model_path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say if no epoch was better than the weights before training, and warn if there is no best checkpoint."""
        start = as_number(self._at_start.get(self.monitor or ""))
        if start is not None and self.best_model_score == start:
            rank_zero_info(
                f"BestCheckpoint: no epoch was better than the weights before training ({self.monitor}={start:.4g}), "
                "so best.ckpt holds these."
            )
        if self.best_model_path or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reason = "was never a finite number" if "not finite" in self._said else "was never logged"
        exists = self.file_exists(self.format_checkpoint_name({}), trainer)
        older = " The file of this name in the folder is of another run." if exists else ""
        rank_zero_warn(
            f"BestCheckpoint: monitor={self.monitor!r} {reason}, so best.ckpt was not saved.{older} last.ckpt in "
            f"{self.dirpath} holds the last epoch."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, its file, and how it was selected."""
        return {**super().state_dict(), "mode": self.mode}

    def _save_if_best(self, trainer: pl.Trainer, logged: Mapping[str, Any]) -> None:
        """Save ``best.ckpt`` if the metric was logged and is better than before. Call it on every rank."""
        # All processes must decide alike, since they save together, but the logged metrics may differ between them.
        score = trainer.strategy.broadcast(as_number(logged.get(self.monitor or "")))
        if score is None or not math.isfinite(score):
            if self.monitor in logged and "not finite" not in self._said:
                self._said.add("not finite")
                rank_zero_warn(
                    f"BestCheckpoint: monitor={self.monitor!r} is {score} in epoch {trainer.current_epoch}. Only "
                    "finite numbers count as the best."
                )
            return
        best = self.best_model_score
        better = best is None or (score < best if self.mode == "min" else score > best)
        if not better or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path, self.current_score = self.format_checkpoint_name({}), torch.tensor(score, dtype=torch.float64)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = self.kth_value = self.current_score
        self.best_k_models = {path: self.current_score}
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _say_missing(self, trainer: pl.Trainer) -> None:
        """Warn once per fit that the metric was not logged in an epoch."""
        if "missing" in self._said:
            return
        self._said.add("missing")
        names = list(trainer.callback_metrics)
        close = get_close_matches(self.monitor or "", names, n=1)
        found = f" Logged metrics: {', '.join(map(repr, names)) or 'none'}."
        if self.monitor in names:  # Lightning keeps the value of an earlier epoch.
            found = " It was in an earlier one."
        elif close:
            found += f" Did you mean {close[0]!r}?"
        rank_zero_warn(
            f"BestCheckpoint: monitor={self.monitor!r} was not logged in epoch {trainer.current_epoch}.{found} "
            "Epochs without it are saved as last.ckpt only."
        )


def _check_mode(monitor: str, mode: Mode | None) -> Mode:
    """Return the mode of a metric."""
    if not isinstance(monitor, str) or not monitor:
        raise MisconfigurationException(
            f"BestCheckpoint: monitor={monitor!r} must be the name of a logged metric, such as 'val_accuracy'."
        )
    if mode not in ("min", "max", None):
        raise MisconfigurationException(f"BestCheckpoint: mode={mode!r} must be 'min', 'max' or None.")
    inferred = infer_mode(monitor)
    if mode is not None and contradicts(monitor, mode):
        raise MisconfigurationException(
            f"BestCheckpoint: mode={mode!r} contradicts monitor={monitor!r}, whose best value is its "
            f"{'lowest' if inferred == 'min' else 'highest'}. Leave mode out, or log the metric under another name."
        )
    chosen = mode or inferred
    if chosen is None:
        raise MisconfigurationException(
            f"BestCheckpoint: mode=None, but the name monitor={monitor!r} does not show whether higher or lower values "
            "are better. Set mode='max' or mode='min'."
        )
    return chosen
