"""The settings of ``pgb prune`` as the configuration of the ``pgb fit`` that it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.config import LatencyRuntime
from pgb_lightning.heads import Labels
from pgb_lightning.modules.entity_metrics import are_entity_tags
from pgb_lightning.modules.fine_tuned import module_entry

Recover = Literal["distill", "finetune", "none"]

#: Default peak learning rates: for distillation that of the recipe, else that of the paper.
LEARNING_RATES: dict[Recover, float] = {"distill": 1e-4, "finetune": 3e-5, "none": 3e-5}

#: Below this number of training rows, three epochs of distillation are too few steps.
FEW_ROWS = 10_000

#: The metric that selects the best epoch; for tokens, if the classes are tags of entities.
MONITORS = {
    "single_label_classification": "val_accuracy",
    "multi_label_classification": "val_f1_micro",
    "regression": "val_spearman",
    "token_classification": "val_f1",
}

#: Files and folders in the folder of the run.
FIT_CONFIG, TEACHER_ANSWERS = "fit.yaml", "teacher"


@dataclass(frozen=True)
class PruneSettings:
    """The settings of ``pgb prune``. All fields are arguments of :func:`~pgb_lightning.cli.prune.run_prune`.

    Raises:
        MisconfigurationException: If a setting is out of range, or contradicts another one.
    """

    model: str
    data: str
    output_dir: str
    pruning_ratio: float | None = None
    target_speedup: float | None = None
    latency_runtime: LatencyRuntime | None = None
    preset: str = "default"
    recover: Recover = "distill"
    epochs: int | None = None
    learning_rate: float | None = None
    text_columns: list[str] | str | None = None
    label_column: str | None = None
    use_labels: bool = True
    label_names: list[str] | None = None
    label_separator: str | None = None
    validation_data: str | None = None
    max_length: int = 128
    batch_size: int = 32
    max_train_samples: int | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        if self.recover not in LEARNING_RATES:
            raise MisconfigurationException(
                f"recover={self.recover!r} is unknown. Use {', '.join(map(repr, LEARNING_RATES))}."
            )
        if self.epochs is not None and self.epochs < 1:
            raise MisconfigurationException(
                f"epochs={self.epochs} is out of range. Use 1 or more, or recover='none' to prune only."
            )
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise MisconfigurationException(f"learning_rate={self.learning_rate} is out of range. Use a positive one.")

    @property
    def run_folder(self) -> Path:
        """The folder with all files of the run other than the exported model and the report."""
        return Path(self.output_dir).expanduser() / "run"

    @property
    def peak_learning_rate(self) -> float:
        """The peak learning rate of the recovery."""
        return self.learning_rate or LEARNING_RATES[self.recover]

    def num_epochs(self, num_rows: int) -> int:
        """Return the number of epochs of the recovery.

        Args:
            num_rows: Number of training rows.
        """
        if self.recover == "none":
            return 0
        if self.epochs is not None:
            return self.epochs
        return 10 if self.recover == "distill" and num_rows < FEW_ROWS else 3

    def data_config(self, model: str, head: Labels | None) -> dict[str, Any]:
        """Return the configuration of the data module.

        Args:
            model: The folder or name of the dense model.
            head: Its labels; ``None`` for an embedding model.
        """
        init_args = {
            "data": self.data,
            "model_name_or_path": model,
            "text_columns": self.text_columns,
            "label_column": self.label_column,
            "use_labels": self.use_labels,
            "validation_data": self.validation_data,
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "max_train_samples": self.max_train_samples,
            "group_by_length": True,
            "seed": self.seed,
        }
        if head is None:
            for name in ("label_names", "label_separator"):
                if getattr(self, name) is not None:
                    raise MisconfigurationException(
                        f"{name}={getattr(self, name)!r} has no effect: model={self.model!r} is an embedding model. "
                        "Omit it."
                    )
            return {"class_path": "pgb_lightning.datamodules.SentencesDataModule", "init_args": init_args}
        init_args |= {"label_names": self.label_names, "label_separator": self.label_separator}
        return {"class_path": "pgb_lightning.datamodules.TextDataModule", "init_args": init_args}

    def model_config(self, model: str, head: Labels | None) -> dict[str, Any]:
        """Return the configuration of the module.

        Args:
            model: The folder or name of the dense model.
            head: Its labels; ``None`` for an embedding model.
        """
        return module_entry(model, head, learning_rate=self.peak_learning_rate)

    def check_recovery(self, head: Labels | None, is_labeled: bool) -> None:
        """Check that the data and the model have labels if the model is to learn from them.

        Args:
            head: The labels of the model; ``None`` for an embedding model.
            is_labeled: Whether the validation rows have labels, or are pairs with scores.

        Raises:
            MisconfigurationException: If ``recover="finetune"`` and there are no labels.
        """
        if self.recover == "finetune" and not is_labeled:
            raise MisconfigurationException(
                f"recover='finetune' needs labels, but data={self.data!r} has none. Use recover='distill', which "
                "learns from the dense model, or set label_column."
            )
        if self.recover == "finetune" and head is None:
            raise MisconfigurationException(
                "recover='finetune' is not for embedding models, which have no labels. Use 'distill' or 'none'."
            )

    def fit_config(
        self, model: str, head: Labels | None, is_labeled: bool, dense_scores: dict[str, float], epochs: int
    ) -> dict[str, Any]:
        """Return the configuration for ``pgb fit``.

        Args:
            model: The folder or name of the dense model.
            head: Its labels; ``None`` for an embedding model.
            is_labeled: Whether the validation rows have labels, or are pairs with scores.
            dense_scores: The dense model's scores, for the report.
            epochs: Number of epochs.
        """
        folder = self.run_folder
        monitor = self._monitor(head)
        trainer: dict[str, Any] = {
            "accelerator": self.accelerator,
            "precision": self.precision,
            "max_epochs": epochs,
            "num_sanity_val_steps": -1 if is_labeled else 0,
            "callbacks": self._callbacks(head, monitor if is_labeled else None, dense_scores),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": "logs"},
            },
        }
        if not is_labeled:
            trainer["limit_val_batches"] = 0
        return {
            "seed_everything": self.seed,
            "model": self.model_config(model, head),
            "data": self.data_config(model, head),
            "trainer": trainer,
        }

    def _monitor(self, head: Labels | None) -> str:
        """Return the metric that selects the best epoch, of those that the module logs."""
        if head is None:
            return "val_spearman"
        if head.problem_type == "token_classification" and not are_entity_tags(head.names or self.label_names or ()):
            return "val_f1_macro"
        return MONITORS[head.problem_type]

    def _callbacks(
        self, head: Labels | None, monitor: str | None, dense_scores: dict[str, float]
    ) -> list[dict[str, Any]]:
        folder = str(self.run_folder)
        target = {
            "pruning_ratio": self.pruning_ratio,
            "target_speedup": self.target_speedup,
            "latency_runtime": self.latency_runtime,
        }
        saver = (
            _callback(
                "lightning.pytorch.callbacks.ModelCheckpoint",
                dirpath=folder,
                filename="last",
                enable_version_counter=False,
            )
            if monitor is None
            else _callback(
                "pgb_lightning.callbacks.BestCheckpoint", dirpath=folder, monitor=monitor, before_training=True
            )
        )
        losses = {"logits_weight": 0.0} if head is None else {}  # an embedding model has no logits
        distillation = _callback("pgb_lightning.callbacks.Distillation", cache=f"{folder}/{TEACHER_ANSWERS}", **losses)
        return [
            _callback("pgb_lightning.callbacks.ExactResume"),
            saver,
            _callback(
                "pgb_lightning.callbacks.PGBReport",
                output_dir=f"{self.output_dir}/report",
                dense_scores=dense_scores or None,
            ),
            _callback("pgb_lightning.callbacks.FastDropout"),
            *([distillation] if self.recover == "distill" else []),
            _callback(
                "pgb_lightning.callbacks.PGBCallback",
                **{name: value for name, value in target.items() if value is not None},
                preset=self.preset,
            ),
        ]


def _callback(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args} if init_args else {"class_path": class_path}
