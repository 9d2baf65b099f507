"""The task of a benchmark with data: a dense model, pruned models, and their scores in every runtime."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import instantiate_class
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.benchmark.runtimes import Runs
from pgb_lightning.config import PruningConfig
from pgb_lightning.datamodules import SentencesDataModule, TextDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.calibration_feeds import CALIBRATION_BATCHES
from pgb_lightning.export.dense_model import find_dense
from pgb_lightning.export.onnx import output_names
from pgb_lightning.export.pruned_checkpoint import read_module
from pgb_lightning.export.sessions import Run
from pgb_lightning.modules import QuestionAnswering, SentenceEmbedding
from pgb_lightning.modules.fine_tuned import module_entry, require_head
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.modules.scoring import agreement, evaluate
from pgb_lightning.pruning import prune

#: Texts are truncated to this many tokens, as in ``pgb prune``.
MAX_LENGTH = 128

#: Scores by name, for each runtime and model.
Scores = dict[str, dict[str, dict[str, float]]]


class RuntimeModel(nn.Module):
    """Replaces the transformers model of a module by an exported one. It has no loss.

    Args:
        run: Runs the exported model.
        model: The transformers model.
    """

    def __init__(self, run: Run, model: PreTrainedModel) -> None:
        super().__init__()
        self.run = run
        self.outputs = output_names(model)
        self.config = model.config

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Return the outputs by the names that they have in transformers."""
        found = self.run({name: value for name, value in inputs.items() if name != "labels"})
        return SimpleNamespace(loss=None, **dict(zip(self.outputs, found, strict=True)))


@dataclass(frozen=True)
class Task:
    """Rows, and the models that are scored on them.

    Args:
        modules: The modules by name. The first is ``"dense"``.
        data: The rows.
    """

    modules: dict[str, FineTuning]
    data: TextDataModule

    @classmethod
    def load(
        cls,
        model: str,
        pruned: Sequence[str],
        ratios: Sequence[float],
        data: str,
        columns: Mapping[str, Any],
        folder: Path,
        console: Console,
    ) -> Task:
        """Load a dense model, prune copies of it in one shot, and load models that were already pruned.

        Args:
            model: A fine-tuned model: a folder, a name on the Hub, or a checkpoint.
            pruned: Pruned models of the same task: folders or checkpoints.
            ratios: Fractions of the encoder's weights to remove from the copies, which are not re-finetuned.
            data: The table: a file, a folder of files, or a name on the Hub.
            columns: Settings of the data module for the columns.
            folder: The folder in which the model of a checkpoint is saved.
            console: Shows which copy is being pruned.

        Raises:
            MisconfigurationException: If a model or the data cannot be read, or the models do not fit the data.
        """
        dense, name = _read(model, "model"), find_dense(model, folder)
        kind = SentencesDataModule if isinstance(dense, SentenceEmbedding) else TextDataModule
        rows = kind(data, name, max_length=min(MAX_LENGTH, find_encoder(dense.model).max_length), **columns)
        modules = {"dense": dense}
        others = {path: _read(path, "pruned") for path in pruned}
        for path, other in others.items():
            if type(other) is not type(dense):
                raise MisconfigurationException(
                    f"pruned={path!r} is a {type(other).__name__}, but model={model!r} is a {type(dense).__name__}. "
                    "Pass models of the same task."
                )
        rows.prepare_data()
        rows.setup("fit")
        for ratio in ratios:
            console.print(f"Pruning a copy by {ratio:.0%}")
            modules[f"{ratio:.0%} removed"] = _prune(copy.deepcopy(dense), rows, ratio)
        return cls(modules | others, rows)

    @property
    def models(self) -> dict[str, PreTrainedModel]:
        """The transformers models by name."""
        return {name: module.model for name, module in self.modules.items()}

    def calibration(self) -> list[Mapping[str, Tensor]]:
        """Return the batches from which ranges of activations are taken."""
        return list(islice(self.data.calibration_dataloader(), CALIBRATION_BATCHES))

    def score(self, runs: Runs, console: Console) -> Scores:
        """Score every model in every runtime on the validation rows.

        Args:
            runs: The functions that run the models, by runtime and name. The first is the dense model in PyTorch.
            console: Shows which model is being scored.

        Returns:
            The scores of the module, if the rows have labels, and ``"agreement"`` with the predictions of the dense
            model in PyTorch.
        """
        tester = L.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        scores: Scores = {}
        reference: list[Tensor] | None = None
        for number, ((runtime, name), run) in enumerate(runs.items(), start=1):
            console.print(f"Scoring {number} of {len(runs)}: {name} in {runtime}", markup=False, soft_wrap=True)
            module = self.modules[name]
            with _running(module, run):
                logged, predictions = evaluate(tester, module, self.data, self.data.is_labeled)
            reference = reference or predictions  # the first is the dense model in PyTorch
            found = {metric.removeprefix("val_"): float(value) for metric, value in logged.items()}
            found["agreement"] = agreement(predictions, reference, getattr(module, "problem_type", None))
            scores.setdefault(runtime, {})[name] = found
        return scores


def check_data_settings(data: str | None, model: str | None, runtimes: Sequence[str], **others: Any) -> None:
    """Check that the settings for a table are complete, and are given only with a table.

    Args:
        data: The setting of the benchmark.
        model: Likewise.
        runtimes: Likewise.
        others: Further settings of the benchmark.

    Raises:
        ValueError: If a setting is missing, or has no effect.
    """
    if (data is None) != (model is None):
        given, missing = ("data", "model") if model is None else ("model", "data")
        raise ValueError(f"{given} is given, but {missing}=None. Set both, to score a model on a table, or neither.")
    if data is not None and not runtimes:
        raise ValueError(f"data={data!r} needs runtimes=[...], in which models are scored. Set it, or omit data.")
    of_data = {"pruned", "text_columns", "label_column"}
    for name, value in others.items():
        if value and (name in of_data) == (data is None):
            raise ValueError(
                f"{name}={value!r} has no effect {'without' if data is None else 'with'} data. Omit it, or change data."
            )


def _read(model: str, setting: str) -> FineTuning:
    if Path(model).suffix == ".ckpt":
        module = read_module(model, setting)
        if isinstance(module, QuestionAnswering):
            raise MisconfigurationException(
                f"{setting}={model!r} is for question answering, which is not scored on tables. Omit data."
            )
        return module
    fine_tuned: FineTuning = instantiate_class((), module_entry(model, require_head(model, setting)))
    return fine_tuned.eval()


def _prune(module: FineTuning, data: TextDataModule, ratio: float) -> FineTuning:
    config, batches = PruningConfig(pruning_ratio=ratio), data.calibration_dataloader()
    if isinstance(module, SentenceEmbedding):
        prune(module, batches, config, loss=module.calibration_step)
    else:
        prune(module.model, batches, config)
    return module.eval()


@contextmanager
def _running(module: FineTuning, run: Run) -> Iterator[None]:
    """Let a module evaluate an exported model instead of its own."""
    own: Any = module.model
    module.model = RuntimeModel(run, own)  # type: ignore[assignment]
    try:
        yield
    finally:
        module.model = own
