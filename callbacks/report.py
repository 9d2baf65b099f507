"""Report what a pruning did: a page, tables, and figures for loggers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from pgb_lightning.callbacks.dense_scores import dense_scores as read_dense_scores
from pgb_lightning.callbacks.logger_images import log_figures, takes_images
from pgb_lightning.callbacks.pgb import PGBCallback
from pgb_lightning.callbacks.trainer_queries import run_folder, shards_first
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.plan import PruningPlan
from pgb_lightning.report import Facts, PruningNotes, render, write_report
from pgb_lightning.report.facts import plan_digest
from pgb_lightning.report.figures import draw_figures, has_matplotlib
from pgb_lightning.report.layer_latency import count_flops, measure_layer_latency
from pgb_lightning.report.tables import error_table, results_table

REPORT_FOLDER = "report"


class PGBReport(pl.Callback):
    """Report what :class:`PGBCallback` did: after pruning, and once more when the fit is over.

    The run's folder, where ``plan.json`` lies, gets a folder ``report`` with ``index.html``, a page that stands alone;
    ``report.json``, its numbers; and with matplotlib the figures as PNG, which loggers that take images get too. The
    terminal gets two tables: kept shares and errors, and scores, size and latency against the dense model. What was not
    measured is marked as such. ``docs/report.md`` explains each part.

    The score of the pruned model is that of the sanity check, if it covers the validation set (``Trainer(
    num_sanity_val_steps=-1)``). What was measured is kept in checkpoints, so a resumed fit reports it too.

    Args:
        output_dir: Folder for the report, instead of ``report`` in the run's folder.
        dense_scores: Validation scores of the dense model by the metrics' names, such as ``{"val_accuracy": 0.91}``.
        dense_ckpt: Or the checkpoint that it came from, such as the fine-tuning's ``best.ckpt``, which remembers its
            score.
        latency: Whether to measure the encoder's layers against dense ones, at the batch size and length that
            PGBCallback is set to; takes a few seconds, and the dense encoder's memory meanwhile.

    Raises:
        MisconfigurationException: A setting is wrong, or the Trainer has no PGBCallback.

    Example:
        >>> trainer = pl.Trainer(callbacks=[PGBCallback(0.5), PGBReport()], logger=False, enable_progress_bar=False,
        ...                      enable_model_summary=False)
        >>> # trainer.fit(fine_tuned_module, datamodule=datamodule) leaves report/index.html
    """

    def __init__(
        self,
        output_dir: str | None = None,
        dense_scores: dict[str, float] | None = None,
        dense_ckpt: str | None = None,
        latency: bool = True,
    ) -> None:
        super().__init__()
        _check(output_dir, dense_scores, dense_ckpt, latency)
        self.output_dir = output_dir
        self.dense_scores = dense_scores
        self.dense_ckpt = dense_ckpt
        self.latency = latency
        self.facts: Facts | None = None
        self._pgb: PGBCallback | None = None
        self._told = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the PGBCallback, and ask it to note what it measures."""
        if stage != "fit":
            return
        found = [each for each in trainer.callbacks if isinstance(each, PGBCallback)]  # type: ignore[attr-defined]
        if not found:
            raise MisconfigurationException(
                "PGBReport reports what PGBCallback does, but the Trainer has none: "
                "callbacks=[PGBCallback(0.5), PGBReport()]."
            )
        self._pgb, self._told = found[0], False
        self._pgb.notes = PruningNotes()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put together what is known now, and measure."""
        if self._pgb is None or self._plan is None:
            rank_zero_warn("PGBReport: the checkpoint holds no plan, so there is nothing to report.")
            return
        if trainer.is_global_zero:
            self.facts = self._known_before(pl_module)
            if not shards_first(trainer):  # else the layers are in pieces
                self._measure(find_encoder(pl_module, self._pgb.encoder))
        self._pgb.notes = None  # maps are large enough to be held once

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the score of the pruned model, unless it is one of a few batches."""
        if trainer.num_sanity_val_batches == trainer.num_val_batches:
            self._add_scores("pruned", _validation_scores(trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the pruning."""
        self._report_pruning(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the latest score of the model in re-finetuning."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._add_scores("re-finetuned", _validation_scores(trainer), replacing=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what re-finetuning made of it."""
        self._report_pruning(trainer)
        folder = self._folder(trainer)
        if self.facts is not None and self._plan is not None:
            rank_zero_info(render(results_table(self._plan, self.facts)))
            self._write(folder)

    def state_dict(self) -> dict[str, Any]:
        """Keep what was measured with the checkpoint."""
        return {"facts": self.facts.to_dict() if self.facts else None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what was measured from the checkpoint of a fit that goes on."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            self.facts = Facts.from_dict(state["facts"]) if state["facts"] else None

    @property
    def _plan(self) -> PruningPlan | None:
        return None if self._pgb is None else self._pgb.plan

    def _known_before(self, pl_module: pl.LightningModule) -> Facts:
        """Return what this pruning noted; where there was none in this fit, what an earlier one left."""
        assert self._pgb is not None
        assert self._plan is not None
        notes = self._pgb.notes
        facts = Facts.of(self._plan, notes, name=_describe(pl_module))
        earlier = self.facts
        if earlier is not None and earlier.plan == plan_digest(self._plan) and not (notes and notes.maps):
            facts = earlier
        dense = self.dense_scores
        if self.dense_ckpt and "dense" not in facts.scores:  # a resumed fit knows, and the file may be gone
            dense = read_dense_scores(self.dense_ckpt)
        return replace(facts, scores={**facts.scores, "dense": dense}) if dense else facts

    def _measure(self, encoder: Encoder) -> None:
        assert self.facts is not None
        assert self._pgb is not None
        config = self._pgb.config
        self.facts = replace(self.facts, flops=count_flops(encoder))
        if self.latency:
            measured = measure_layer_latency(encoder, config.latency_batch_size, config.latency_length)
            self.facts = replace(self.facts, latency=(measured,))

    def _add_scores(self, stage: str, scores: Mapping[str, float], replacing: bool = False) -> None:
        if self.facts is not None and scores and (replacing or stage not in self.facts.scores):
            self.facts = replace(self.facts, scores={**self.facts.scores, stage: scores})

    def _report_pruning(self, trainer: pl.Trainer) -> None:
        """Say, write and log what is known after the pruning, once a fit."""
        folder = self._folder(trainer)
        if self._told or self.facts is None or self._plan is None:
            return
        self._told = True
        rank_zero_info(render(error_table(self._plan, self.facts)))
        self._write(folder)
        loggers = [logger for logger in trainer.loggers if takes_images(logger)]
        if loggers and not has_matplotlib():
            rank_zero_warn('PGBReport: figures for loggers need matplotlib: pip install "pgb-lightning[figures]".')
        elif loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            figures = {f"pgb/{name}": figure for name, figure in draw_figures(self._plan, self.facts).items()}
            for logger in loggers:
                log_figures(logger, figures, trainer.global_step)

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        """Find the report's folder, on every rank."""
        folder = run_folder(trainer)
        if self.output_dir is not None:
            return Path(self.output_dir).expanduser()
        return None if folder is None else folder / REPORT_FOLDER

    def _write(self, folder: Path | None) -> None:
        if folder is None or self._plan is None:
            return
        try:
            page = write_report(folder, self._plan, self.facts)
        except OSError as error:  # no reason to lose a fit
            rank_zero_warn(f"PGBReport could not write to {folder}: {error}.")
        else:
            rank_zero_info(f"PGBReport wrote {page}.")


def _check(output_dir: Any, scores: Any, ckpt: Any, latency: Any) -> None:
    """Refuse settings that cannot be."""
    for name, value in {"output_dir": output_dir, "dense_ckpt": ckpt}.items():
        if value is not None and (not isinstance(value, (str, Path)) or not str(value)):
            raise MisconfigurationException(f"PGBReport: {name}={value!r} must be a path, or left out.")
    if not isinstance(latency, bool):
        raise MisconfigurationException(f"PGBReport: latency={latency!r} must be True or False.")
    if scores is None:
        return
    if ckpt is not None:
        raise MisconfigurationException(
            "PGBReport: dense_scores and dense_ckpt both say how good the dense model was; give one of them."
        )
    if not isinstance(scores, Mapping):
        raise MisconfigurationException(
            f"PGBReport: dense_scores={scores!r} must map metrics to numbers, such as {{'val_accuracy': 0.91}}."
        )
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise MisconfigurationException(f"PGBReport: dense_scores[{name!r}]={value!r} must be a finite number.")


def _validation_scores(trainer: pl.Trainer) -> dict[str, float]:
    """Return the metrics whose names say that they are validation's; all of them where none says so."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name: value for name, value in metrics.items() if name.startswith("val")} or metrics


def _describe(pl_module: pl.LightningModule) -> str:
    """Say what was pruned: the model's name where the module has one, and the task."""
    hparams = pl_module.hparams
    name = str(hparams.get("model_name_or_path") or type(pl_module).__name__)
    name = Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name  # no machine's paths
    task = hparams.get("task") or (f"SQuAD {hparams['version']}" if "version" in hparams else "")
    return f"{name} on {task}" if task else name
