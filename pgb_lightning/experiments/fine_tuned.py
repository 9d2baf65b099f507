"""A fine-tuned dense model with its data: prune it, re-finetune the result, and measure both."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities import move_data_to_device

from pgb_lightning.checkpoints import load_checkpoint
from pgb_lightning.cost import encoder_cost
from pgb_lightning.datamodules import GLUEDataModule, SQuADDataModule
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.experiments.calibrated_model import CalibratedModel, Module
from pgb_lightning.experiments.checkpoint_files import find_tokenizer, hash_file
from pgb_lightning.experiments.metering import metered
from pgb_lightning.experiments.records import Result
from pgb_lightning.experiments.recoveries import recover
from pgb_lightning.experiments.task_setup import TaskSetup
from pgb_lightning.experiments.training import make_trainer, save_weights
from pgb_lightning.experiments.validation import Validated, validate


@dataclass(frozen=True)
class PrunedModel:
    """A pruned module with its measurements before re-finetuning.

    Args:
        module: The module.
        measured: Fraction removed, size, scores, and time and memory of pruning.
    """

    module: Module
    measured: Result


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned dense model, loaded and validated only when first needed.

    Args:
        setup: The task.
        checkpoint: Lightning checkpoint of the module; :meth:`train` writes it.
        data: The data module.
        precision: The Trainer's precision in training. Calibration and validation are in single precision.
        seed: Seed of dropout and of the order of the rows.
        teacher_cache: Folder for the dense model's answers, so that several re-finetunings need not compute them again.
    """

    setup: TaskSetup
    checkpoint: Path
    data: GLUEDataModule | SQuADDataModule
    precision: Any = "32-true"
    seed: int = 0
    teacher_cache: str | None = None

    @cached_property
    def module(self) -> Module:
        """The dense module."""
        return self.setup.module.load_from_checkpoint(self.checkpoint, map_location="cpu").eval()

    @cached_property
    def validated(self) -> Validated:
        """The dense model's predictions on the validation set."""
        return validate(self.module, self.data)

    def train(self, model_name_or_path: str, epochs: int, learning_rate: float) -> Result:
        """Fine-tune a pretrained model, write the checkpoint, and return the time and memory of training."""
        L.seed_everything(self.seed)
        module = self.setup.module(
            model_name_or_path=model_name_or_path, learning_rate=learning_rate, **self.setup.options
        )
        trainer = make_trainer(epochs, precision=self.precision, enable_progress_bar=False, limit_val_batches=0)
        with metered() as usage:
            trainer.fit(module, datamodule=self.data)
        save_weights(trainer, self.checkpoint)
        return asdict(usage)

    def check_trained(self, model_name_or_path: str, epochs: int, learning_rate: float) -> None:
        """Check that the checkpoint was trained with these settings, as far as it records them.

        Raises:
            ValueError: If it is not.
        """
        saved = load_checkpoint(self.checkpoint)
        parameters = saved["hyper_parameters"]
        names = ("model_name_or_path", "learning_rate")
        found = {"epochs": saved["epoch"], **{name: parameters[name] for name in names}}
        wanted = {"epochs": epochs, "model_name_or_path": model_name_or_path, "learning_rate": learning_rate}
        if changed := [
            f"{name}={wanted[name]!r}, not {found[name]!r}" for name in wanted if wanted[name] != found[name]
        ]:
            raise ValueError(
                f"{str(self.checkpoint)!r} was trained with other settings: {'; '.join(changed)}. Use another folder."
            )

    def score(self, module: Module) -> dict[str, float]:
        """Return all metrics on the validation set, and the divergence from the dense model's predictions."""
        exclusive = getattr(self.data, "num_labels", 2) > 1
        found = self.validated if module is self.module else validate(module, self.data)
        return {**found.scores, "divergence": found.divergence(self.validated, exclusive)}

    def prune(self, method: str, ratio: float, options: dict[str, Any] | None = None) -> PrunedModel:
        """Prune a copy of the model in one shot.

        Args:
            method: A preset or the name of a baseline.
            ratio: Fraction of the encoder's weights to remove.
            options: Settings that override those of the preset; baselines have none.
        """
        module, removed, usage = self._calibrated.prune(method, ratio, options)
        module.to("cpu")
        before = self.score(module)
        return PrunedModel(module, {"removed": removed, **size(module), "before": before, "pruning": asdict(usage)})

    def recover(self, pruned: PrunedModel, settings: dict[str, Any], checkpoint: Path | None = None) -> Result:
        """Re-finetune a copy of a pruned model, and return all measurements.

        Args:
            pruned: The pruned model, which is not changed.
            settings: The settings of a recovery.
            checkpoint: File for the result, if it is to be kept.
        """
        module = copy.deepcopy(pruned.module)
        with metered() as usage:
            losses = recover(
                module=module,
                dense=self.module.model,
                data=self.data,
                settings=settings,
                precision=self.precision,
                seed=self.seed,
                checkpoint=checkpoint,
                cache=self.teacher_cache,
            )
        refinetuning = {**asdict(usage), **losses, "cached": self.teacher_cache is not None}
        return {**pruned.measured, "after": self.score(module), "refinetuning": refinetuning}

    @cached_property
    def _calibrated(self) -> CalibratedModel:
        """The model with its calibration batches, on the device that calibrates."""
        module = copy.deepcopy(self.module)
        module.to(make_trainer(1).strategy.root_device)
        self.data.prepare_data()
        self.data.setup("fit")
        batches = [move_data_to_device(batch, module.device) for batch in self.data.calibration_dataloader()]
        return CalibratedModel(module, batches)


def size(module: Module) -> Result:
    """Return the weights of the encoder's matrices, and the FLOPs of one sequence of 128 tokens through it."""
    cost = encoder_cost(find_encoder(module))
    return {"parameters": cost.parameters, "flops": cost.flops}


def dense_models(
    setup: TaskSetup,
    checkpoints: Iterable[tuple[str, int]],
    data_dir: str | None,
    max_train_samples: int | None,
    data_options: dict[str, Any],
    precision: str,
    teacher_cache: str | None = None,
) -> Iterator[tuple[FineTuned, Result]]:
    """Yield fine-tuned models with the settings that identify them in result files.

    Args:
        setup: The task.
        checkpoints: Lightning checkpoints of dense modules with their seeds.
        data_dir: Local folder of parquet files; the Hub if not given.
        max_train_samples: Number of training rows; all if not given.
        data_options: Further settings of the data module.
        precision: The Trainer's precision in training.
        teacher_cache: Folder for the dense models' answers, if they are to be kept.
    """
    for path, seed in checkpoints:
        name = find_tokenizer(path)
        data = setup.make_data(
            model_name_or_path=name,
            data_dir=data_dir,
            max_train_samples=max_train_samples,
            seed=seed,
            **data_options,
        )
        settings: Result = {
            "model_name_or_path": name,
            "weights": hash_file(path),
            "max_train_samples": max_train_samples,
            "data_options": data_options,
            "precision": precision,
            "seed": seed,
        }
        model = FineTuned(
            setup=setup,
            checkpoint=Path(path),
            data=data,
            precision=precision,
            seed=seed,
            teacher_cache=teacher_cache,
        )
        yield model, settings
