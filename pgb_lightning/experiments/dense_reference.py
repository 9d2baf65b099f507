"""A fine-tuned dense model with its calibration and validation set, against which pruned models are measured."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from pgb_lightning.calibration.collect import Calibration, Loss, calibrate
from pgb_lightning.calibration.fisher import FisherLoss
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.config import Fisher, PruningConfig
from pgb_lightning.datamodules import GLUEDataModule
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.baselines import Calibrated, make_permanent
from pgb_lightning.experiments.baselines.fisher import collect_fisher
from pgb_lightning.experiments.training import make_trainer
from pgb_lightning.glue_tasks import get_task
from pgb_lightning.modules import TextClassification
from pgb_lightning.modules.metrics import make_metrics
from pgb_lightning.plan import PruningPlan
from pgb_lightning.pruning import carry_out

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on the validation set.

    Args:
        score: The task's first metric, in percent.
        loss: Mean loss.
        divergence: Mean Kullback-Leibler divergence from the dense model's predictions; for regression, half the mean
            squared difference.
    """

    score: float
    loss: float
    divergence: float


@dataclass(frozen=True)
class DenseReference:
    """A calibrated dense model, from which any number of pruned models can be made.

    Args:
        task: The GLUE task.
        module: The dense module, in eval mode.
        statistics: Calibration statistics of its encoder, including moments.
        baselines: The model with the same calibration batches, for the baselines.
        data: The data module of all batches.
        batches: Batches of the validation set.
        logits: The dense model's logits on these batches.
    """

    task: str
    module: TextClassification
    statistics: Calibration
    baselines: Calibrated
    data: GLUEDataModule
    batches: list[Batch]
    logits: list[Tensor]

    @classmethod
    def load(
        cls,
        task: str,
        ckpt_path: str,
        data_dir: str | None = None,
        model_name_or_path: str | None = None,
        max_train_samples: int | None = None,
        calibration_size: int | None = None,
        seed: int = 0,
        data_options: dict[str, Any] | None = None,
        max_validation_samples: int | None = None,
    ) -> DenseReference:
        """Load a checkpoint and calibrate its model.

        Args:
            task: A GLUE task.
            ckpt_path: Lightning checkpoint of a dense :class:`TextClassification`.
            data_dir: Local folder of parquet files; the Hub if not given.
            model_name_or_path: Name or path of the tokenizer; that of the checkpoint's model if not given.
            max_train_samples: Number of training rows, from which the calibration rows are drawn; all if not given.
            calibration_size: Number of calibration rows; 2,048 if not given.
            seed: Seed for drawing the rows.
            data_options: Further settings of the data module.
            max_validation_samples: Number of validation rows, rounded up to whole batches; all if not given.

        Raises:
            ValueError: If the model was fine-tuned for another task.
        """
        module = TextClassification.load_from_checkpoint(ckpt_path, map_location="cpu").eval()
        if module.task is not None and module.task.name != task:
            raise ValueError(
                f"task={task!r} does not match ckpt_path={ckpt_path!r}, whose task is {module.task.name!r}. "
                "Use the checkpoint's task."
            )
        data = GLUEDataModule(
            task,
            model_name_or_path or module.hparams["model_name_or_path"],
            data_dir,
            max_train_samples=max_train_samples,
            calibration_size=calibration_size,
            seed=seed,
            **(data_options or {}),
        )
        data.prepare_data()
        data.setup("fit")
        calibration = list(data.calibration_dataloader())
        statistics = _calibrate(module, calibration, model_loss(module.model))
        loaders = data.val_dataloader()
        batches = list(loaders[0] if isinstance(loaders, list) else loaders)
        if max_validation_samples is not None:
            batches = batches[: math.ceil(max_validation_samples / data.eval_batch_size)]
        with torch.inference_mode():
            logits = [module.model(**batch).logits for batch in batches]
        baselines = Calibrated(module.model, calibration, {collect_fisher: statistics.fisher})
        return cls(task, module, statistics, baselines, data, batches, logits)

    @property
    def encoder(self) -> Encoder:
        """The dense encoder."""
        return find_encoder(self.module)

    def calibrate(self, fisher: Fisher, temperature: float = 1.0, draws: int = 1, seed: int = 0) -> Calibration:
        """Return the calibration on the same rows with other gradients.

        Args:
            fisher: The setting of :class:`~pgb_lightning.PruningConfig`.
            temperature: The setting ``fisher_temperature``.
            draws: Number of draws for each row, whose statistics are averaged.
            seed: Seed of the first draw; later draws have the next ones.
        """
        if fisher == "labels":
            return self.statistics
        found: list[Calibration] = []
        run = model_loss(self.module.model)
        for draw in range(draws):
            loss = FisherLoss(self.module, self.encoder, run, fisher, temperature=temperature, seed=seed + draw)
            found.append(_calibrate(self.module, self.baselines.batches, loss))
        return average(found)

    def pruned(self, plan: PruningPlan, config: PruningConfig) -> TextClassification:
        """Return a copy of the dense module, pruned by a plan."""
        module = copy.deepcopy(self.module)
        carry_out(find_encoder(module), plan, self.statistics, config)
        return module

    def refinetune(self, module: TextClassification, epochs: int, learning_rate: float) -> None:
        """Re-finetune a module in place. Masks are applied during training and become zeros in the weights.

        Args:
            module: A pruned module, or a copy of the dense one.
            epochs: Number of epochs over the training rows.
            learning_rate: Peak learning rate, at the end of the warm-up.
        """
        gc.collect()  # a Trainer and its module refer to each other: free the previous model before this one is trained
        module.learning_rate = learning_rate
        L.seed_everything(self.data.seed)
        # on the CPU, like all other measurements
        trainer = make_trainer(epochs, accelerator="cpu", enable_progress_bar=False, limit_val_batches=0)
        trainer.fit(module.train(), datamodule=self.data)
        make_permanent(module.eval())

    @torch.inference_mode()
    def evaluate(self, module: TextClassification) -> Evaluation:
        """Evaluate a module on the validation set."""
        task = get_task(self.task)
        metrics: MetricCollection = make_metrics(task, task.num_labels)
        losses, divergences = [], []
        for batch, dense in zip(self.batches, self.logits, strict=True):
            output = module.model(**batch)
            predicted = output.logits.squeeze(-1) if task.is_regression else output.logits.argmax(-1)
            metrics.update(predicted, batch["labels"])
            losses.append(float(output.loss) * len(dense))
            divergences.append(float(_divergence(output.logits, dense, task.is_regression)))
        rows = sum(map(len, self.logits))
        score = 100 * float(metrics.compute()[task.metrics[0]])
        return Evaluation(score=score, loss=sum(losses) / rows, divergence=sum(divergences) / rows)


def _calibrate(module: TextClassification, batches: Sequence[Batch], loss: Loss) -> Calibration:
    max_tokens = PruningConfig().compensation_tokens
    return calibrate(find_encoder(module), batches, loss, max_tokens=max_tokens, moments=True)


def average(calibrations: Sequence[Calibration]) -> Calibration:
    """Return the mean of the statistics of gradients over calibrations on the same batches."""
    first = calibrations[0]
    assert first.moments is not None

    def mean(values: Sequence[dict[tuple[int, str], Tensor]]) -> dict[tuple[int, str], Tensor]:
        return {key: torch.stack([each[key] for each in values]).mean(0) for key in values[0]}

    gradients = mean([each.moments.gradients for each in calibrations if each.moments is not None])
    return replace(
        first,
        fisher=mean([each.fisher for each in calibrations]),
        moments=replace(first.moments, gradients=gradients),
    )


def _divergence(logits: Tensor, dense: Tensor, is_regression: bool) -> Tensor:
    """Return the divergence from the dense predictions, summed over rows."""
    if is_regression:
        return (logits - dense).square().sum() / 2
    return nn.functional.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), reduction="sum", log_target=True)
