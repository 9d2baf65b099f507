"""Data module, LightningModule and metrics of each task in the experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgb_lightning.cli.suggestions import check_options
from pgb_lightning.datamodules import GLUEDataModule, SQuADDataModule
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.modules import QuestionAnswering, TextClassification

SQUAD_VERSIONS = {"squad": "1.1", "squad_v2": "2.0"}


@dataclass(frozen=True)
class TaskSetup:
    """Classes and settings for the experiments on one task.

    Args:
        datamodule: Class of the data module.
        module: Class of the LightningModule.
        options: Arguments of both classes that select the task.
        max_length: Maximum input length in tokens, as in the paper.
        metrics: Logged validation metrics, the paper's metric first.
        percent: Whether the metrics are logged in percent.
    """

    datamodule: type[GLUEDataModule] | type[SQuADDataModule]
    module: type[TextClassification] | type[QuestionAnswering]
    options: dict[str, Any]
    max_length: int
    metrics: tuple[str, ...]
    percent: bool

    def check_data_options(self, options: dict[str, Any] | None, max_length: int | None = None) -> dict[str, Any]:
        """Return the settings of the data module that the arguments of a command leave open, with their defaults.

        Args:
            options: The settings that are given.
            max_length: Maximum input length in tokens, if it is an argument of its own.

        Raises:
            ValueError: If one is unknown, or is an argument of the command.
        """
        taken = ["model_name_or_path", *self.options, "data_dir", "max_train_samples", "seed"]
        check_options("data_options", options or {}, self.datamodule, [*taken, *(["max_length"] if max_length else [])])
        return {"max_length": max_length or self.max_length, **(options or {})}

    def make_data(self, **settings: Any) -> GLUEDataModule | SQuADDataModule:
        """Create the data module of the task.

        Args:
            settings: Its settings, without those that select the task.
        """
        return self.datamodule(**self.options, **settings)

    @classmethod
    def of(cls, name: str) -> TaskSetup:
        """Return the setup of a task.

        Raises:
            ValueError: If it is neither a GLUE task nor "squad" nor "squad_v2".
        """
        if name in SQUAD_VERSIONS:
            v2_metrics = ("val_HasAns_f1", "val_NoAns_f1", "val_best_f1") if name == "squad_v2" else ()
            return cls(
                datamodule=SQuADDataModule,
                module=QuestionAnswering,
                options={"version": SQUAD_VERSIONS[name]},
                max_length=384,
                metrics=("val_f1", "val_exact_match", *v2_metrics),
                percent=True,
            )
        try:
            task = get_task(name)
        except ValueError as error:
            raise ValueError(f"{error} Or one of: {', '.join(SQUAD_VERSIONS)}.") from None
        sets = [split.removeprefix("validation_") for split in task.validation_splits]
        prefixes = ["val", *(f"val_{name}" for name in sets[1:])]
        return cls(
            datamodule=GLUEDataModule,
            module=TextClassification,
            options={"task": name},
            max_length=128,
            metrics=tuple(f"{prefix}_{metric}" for prefix in prefixes for metric in task.metrics),
            percent=False,
        )
