"""Report the effect of pruning: a page, tables, and figures for loggers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.table import Table

from pgb_lightning.callbacks.dense_scores import read_dense_scores
from pgb_lightning.callbacks.logger_images import accepts_images, log_figures
from pgb_lightning.callbacks.pgb import PGBCallback
from pgb_lightning.callbacks.trainer_queries import as_number, logged_since, run_folder, shards_before_restore
from pgb_lightning.checkpoints import state_key
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
    """Report the effect of :class:`PGBCallback`, after the pruning and again at the end of the fit.

    The report is written to the folder ``report`` in the run's folder, next to ``plan.json``: a self-contained page
    ``index.html``, its numbers in ``report.json``, and, if matplotlib is installed, the figures as PNG files. The
    figures are also logged to loggers that accept images. Two tables are printed: one of kept fractions and errors, and
    one that compares scores, size and latency with the dense model. Values that were not measured are marked as such.
    ``docs/report.md`` explains each part.

    The score of the pruned model is that of the sanity check, if it covers the whole validation set (``Trainer(
    num_sanity_val_steps=-1)``). Measurements are stored in checkpoints, so a resumed fit reports them too.

    Args:
        output_dir: Folder for the report, instead of ``report`` in the run's folder.
        dense_scores: Validation scores of the dense model by metric name, such as ``{"val_accuracy": 0.91}``.
        dense_ckpt: Alternatively, the dense checkpoint, such as the ``best.ckpt`` of the fine-tuning run, which holds
            its score.
        latency: Whether to measure the latency of the encoder's layers and of dense ones, with PGBCallback's
            ``latency_batch_size``, ``latency_length`` and ``latency_runtime``. This takes a few seconds (minutes in
            other runtimes than PyTorch), and the memory of the dense encoder.
        encoder: The ``encoder`` of the PGBCallback to report on; required if the Trainer has several. Then use one
            PGBReport for each; its folder is ``report-ENCODER``.

    Raises:
        MisconfigurationException: If a setting is invalid, or the Trainer has no such PGBCallback.

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
        encoder: str | None = None,
    ) -> None:
        super().__init__()
        _check_settings(output_dir, dense_scores, dense_ckpt, latency)
        self.output_dir = output_dir
        self.dense_scores = dense_scores
        self.dense_ckpt = dense_ckpt
        self.latency = latency
        self.encoder = encoder
        self.facts: Facts | None = None
        self._pgb: PGBCallback | None = None
        self._label: str | None = None
        self._reported = False
        self._before_validation: dict[str, Any] = {}
        self._scored_step: int | None = None

    @property
    def state_key(self) -> str:
        """The key of the callback's state in checkpoints, which depends on ``encoder``."""
        return state_key(type(self).__qualname__, self.encoder)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the PGBCallback and set the record that it fills."""
        if stage != "fit":
            return
        self._pgb, self._label = _find_pgb(trainer, self.encoder)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, PGBReport) and other is not self:
                self._check_other(trainer, other)
        self._reported = False
        self._pgb.notes = PruningNotes()

    def _check_other(self, trainer: pl.Trainer, other: PGBReport) -> None:
        """Check that another PGBReport is for another encoder and writes to another folder."""
        if _find_pgb(trainer, other.encoder)[0] is self._pgb:
            raise MisconfigurationException(
                f"PGBReport: encoder={self.encoder!r} and encoder={other.encoder!r} report on one PGBCallback. Use "
                "one of them."
            )
        if self.output_dir is not None and self.output_dir == other.output_dir:
            raise MisconfigurationException(
                f"PGBReport: output_dir={self.output_dir!r} is the folder of two reports. Use another one for each."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the results of the pruning, and measure FLOPs and latency."""
        if self._pgb is None or self._plan is None:
            rank_zero_warn("PGBReport: the checkpoint holds no plan, so no report is written.")
            return
        if trainer.is_global_zero:
            self.facts = self._collect_facts(pl_module)
            if not shards_before_restore(trainer):  # Sharded layers cannot be measured.
                with _as_warning("measure FLOPs and latency"):
                    self._measure(find_encoder(pl_module, self._pgb.encoder))
        self._scored_step = None
        self._pgb.notes = None  # Importance maps are large, so keep only one copy.

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record which metrics earlier validations logged."""
        self._before_validation = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the scores: the latest of re-finetuning, or those of a sanity check on all validation data."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        scores = _validation_scores(logged_since(trainer, self._before_validation))
        if not trainer.sanity_checking:
            self._scored_step = trainer.global_step
            self._add_scores("re-finetuned", scores, replacing=True)
        elif trainer.num_sanity_val_batches == trainer.num_val_batches:
            self._add_scores("pruned", scores)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the pruning, before re-finetuning starts."""
        self._report_pruning(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the scores after re-finetuning."""
        self._report_pruning(trainer)
        folder = self._folder(trainer)
        if self.facts is None or self._plan is None:
            return
        if "re-finetuned" in self.facts.scores and self._scored_step != trainer.global_step:
            rank_zero_warn(
                f"PGBReport: the scores after re-finetuning are those of step {self._scored_step or 'an earlier fit'}, "
                f"but the training ended at step {trainer.global_step}. Validate the final model to score it."
            )
        with _as_warning("print the results"):
            self._print(results_table(self._plan, self.facts))
        self._write(folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements, to be stored in the checkpoint."""
        return {"facts": self.facts.to_dict() if self.facts else None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the measurements from the checkpoint of a resumed fit."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.state.fn == TrainerFn.FITTING:
            self.facts = Facts.from_dict(state["facts"]) if state["facts"] else None

    @property
    def _plan(self) -> PruningPlan | None:
        return None if self._pgb is None else self._pgb.plan

    def _collect_facts(self, pl_module: pl.LightningModule) -> Facts:
        """Return the facts of the pruning in this fit, or in the earlier fit that pruned the model."""
        assert self._pgb is not None
        assert self._plan is not None
        notes = self._pgb.notes
        name = _describe(pl_module)
        facts = Facts.of(self._plan, notes, name=name if self._label is None else f"{name}, {self._label}")
        earlier = self.facts
        if earlier is not None and earlier.plan == plan_digest(self._plan) and not (notes and notes.maps):
            facts = earlier
        dense = self.dense_scores
        if self.dense_ckpt and "dense" not in facts.scores:  # A resumed fit has it; the file may no longer exist.
            dense = read_dense_scores(self.dense_ckpt)
        return replace(facts, scores={**facts.scores, "dense": dense}) if dense else facts

    def _measure(self, encoder: Encoder) -> None:
        assert self.facts is not None
        assert self._pgb is not None
        config = self._pgb.config
        self.facts = replace(self.facts, flops=count_flops(encoder))
        if self.latency:
            measured = measure_layer_latency(
                encoder, config.latency_batch_size, config.latency_length, config.latency_runtime
            )
            self.facts = replace(self.facts, latency=(measured,))

    def _add_scores(self, stage: str, scores: Mapping[str, float], replacing: bool = False) -> None:
        if self.facts is not None and scores and (replacing or stage not in self.facts.scores):
            self.facts = replace(self.facts, scores={**self.facts.scores, stage: scores})

    def _report_pruning(self, trainer: pl.Trainer) -> None:
        """Print, write and log the result of the pruning, once per fit."""
        folder = self._folder(trainer)
        if self._reported or self.facts is None or self._plan is None:
            return
        self._reported = True
        with _as_warning("print the errors"):
            self._print(error_table(self._plan, self.facts))
        self._write(folder)
        loggers = [logger for logger in trainer.loggers if accepts_images(logger)]
        if loggers and not has_matplotlib():
            rank_zero_warn('PGBReport: figures for loggers need matplotlib: pip install "pgb-lightning[figures]".')
        elif loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            prefix = "pgb" if self._label is None else f"pgb/{self._label}"
            with _as_warning("draw the figures"):
                figures = {f"{prefix}/{name}": figure for name, figure in draw_figures(self._plan, self.facts).items()}
                for logger in loggers:
                    log_figures(logger, figures, trainer.global_step)

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        """Return the report's folder. Must be called on every rank."""
        folder = run_folder(trainer)
        if self.output_dir is not None:
            return Path(self.output_dir).expanduser()
        return None if folder is None else folder / "-".join(filter(None, (REPORT_FOLDER, self._label)))

    def _print(self, table: Table) -> None:
        if self._label is not None:
            table.title = f"{self._label}: {table.title}"
        rank_zero_info(render(table))

    def _write(self, folder: Path | None) -> None:
        if folder is None or self._plan is None:
            return
        with _as_warning(f"write to {folder}"):
            rank_zero_info(f"PGBReport wrote {write_report(folder, self._plan, self.facts)}.")


@contextmanager
def _as_warning(action: str) -> Iterator[None]:
    """Turn an exception into a warning: a report that fails must not end the fit."""
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"PGBReport could not {action}. {type(error).__name__}: {error}")


def _find_pgb(trainer: pl.Trainer, encoder: str | None) -> tuple[PGBCallback, str | None]:
    """Return the PGBCallback to report on, and the name of its encoder if the Trainer has several of them."""
    found = [each for each in trainer.callbacks if isinstance(each, PGBCallback)]  # type: ignore[attr-defined]
    names = ", ".join(f"encoder={each.encoder!r}" for each in found)
    if not found:
        raise MisconfigurationException(
            "PGBReport needs a PGBCallback in the same Trainer, such as callbacks=[PGBCallback(0.5), PGBReport()]."
        )
    if encoder is None and len(found) > 1:
        raise MisconfigurationException(
            f"PGBReport: encoder=None is ambiguous, since the Trainer has {len(found)} PGBCallbacks: {names}. Use one "
            f"PGBReport for each of them, such as PGBReport(encoder={found[0].encoder!r})."
        )
    matching = [each for each in found if encoder is None or each.encoder == encoder]
    if not matching:
        raise MisconfigurationException(
            f"PGBReport: encoder={encoder!r} is not the setting of a PGBCallback in the same Trainer. Use {names}."
        )
    return matching[0], matching[0].encoder if len(found) > 1 else None


def _check_settings(output_dir: Any, scores: Any, ckpt: Any, latency: Any) -> None:
    """Raise an error for an invalid setting."""
    for name, value in {"output_dir": output_dir, "dense_ckpt": ckpt}.items():
        if value is not None and (not isinstance(value, (str, Path)) or not str(value)):
            raise MisconfigurationException(f"PGBReport: {name}={value!r} must be a path. Pass one, or leave it out.")
    if not isinstance(latency, bool):
        raise MisconfigurationException(f"PGBReport: latency={latency!r} must be True or False.")
    if scores is None:
        return
    if ckpt is not None:
        raise MisconfigurationException(
            "PGBReport: dense_scores and dense_ckpt both set the scores of the dense model. Pass only one of them."
        )
    if not isinstance(scores, Mapping):
        raise MisconfigurationException(
            f"PGBReport: dense_scores={scores!r} must map metrics to numbers, such as {{'val_accuracy': 0.91}}."
        )
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise MisconfigurationException(f"PGBReport: dense_scores[{name!r}]={value!r} must be a finite number.")


def _validation_scores(logged: Mapping[str, Any]) -> dict[str, float]:
    """Return the numeric metrics whose names start with ``val``, or all numeric metrics if there are none."""
    numbers = {name: as_number(value) for name, value in logged.items()}
    scores = {name: number for name, number in numbers.items() if number is not None}
    return {name: score for name, score in scores.items() if name.startswith("val")} or scores


def _describe(pl_module: pl.LightningModule) -> str:
    """Return the name of the pruned model: its ``model_name_or_path`` or class, and the task if there is one."""
    hparams = pl_module.hparams
    name = str(hparams.get("model_name_or_path") or type(pl_module).__name__)
    if Path(name).is_absolute() or name.startswith((".", "~")):
        name = Path(name).name  # without the folders of this machine
    task = hparams.get("task") or (f"SQuAD {hparams['version']}" if "version" in hparams else "")
    return f"{name} on {task}" if task else name
