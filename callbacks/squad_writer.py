"""Write the answers of a SQuAD model in the file formats of the official evaluation scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import distributed

from pgb_lightning.callbacks.folder_writer import FolderWriter
from pgb_lightning.datamodules.squad import SQuADDataModule
from pgb_lightning.modules.question_answering import QuestionAnswering
from pgb_lightning.modules.squad_metrics import best_answers


class AnswerWriter(FolderWriter):
    """Write the results of ``trainer.predict`` to ``predictions.json``: the answer to each question, by its id.

    For SQuAD 2.0, the answer is empty if "no answer" scores higher than the best span by more than the module's
    ``null_threshold``, which validation sets; ``null_odds.json`` holds the difference for each question. Under ``ddp``,
    the windows of all processes are gathered, each once. Nothing is written unless all windows were predicted.

    Args:
        output_dir: Folder for the files; created if it does not exist.
        overwrite: Whether to replace existing files.

    Raises:
        MisconfigurationException: If the data is not that of a SQuADDataModule, a file exists already, or a score is
            NaN.

    Example:
        >>> writer = AnswerWriter("runs/squad/answers")
        >>> # Trainer(callbacks=[writer]).predict(module, datamodule=SQuADDataModule(...))
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the data and the files before predicting."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SQuADDataModule) or not isinstance(pl_module, QuestionAnswering):
            raise MisconfigurationException(
                "AnswerWriter needs a QuestionAnswering module and the data of a SQuADDataModule, not "
                f"{type(pl_module).__name__} and {type(data).__name__}. Pass both, or leave the callback out."
            )
        names = ["predictions.json", *(["null_odds.json"] if pl_module.version == "2.0" else [])]
        self.check_not_existing(self.output_dir / name for name in names)

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the windows of all processes, select the answers and write them."""
        own = torch.cat(list(predictions)).cpu().double().numpy() if predictions else np.zeros((0, 6))
        gathered = [own] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(gathered, own)
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        windows, count = np.concatenate(gathered), len(data.split("validation"))
        seen = len(np.unique(windows[:, :2], axis=0))
        if seen < count:
            rank_zero_warn(
                f"{self.output_dir / 'predictions.json'} was not written: only {seen} of the {count} windows of the "
                "contexts were predicted."
            )
            return
        if np.isnan(windows).any():
            raise MisconfigurationException(
                f"AnswerWriter: the scores of {int(np.isnan(windows).any(1).sum())} of the {count} windows are NaN. "
                "The model has diverged; use another checkpoint."
            )
        examples = data.examples("validation")
        ids = list(examples["id"])
        answers = best_answers(windows, list(examples["context"]))
        assert isinstance(pl_module, QuestionAnswering)
        threshold = float(pl_module.null_threshold) if pl_module.version == "2.0" else np.inf
        texts = {ids[a.question]: "" if a.no_answer > threshold else a.text for a in answers}
        self._write("predictions.json", texts)
        if pl_module.version == "2.0":
            self._write("null_odds.json", {ids[a.question]: a.no_answer for a in answers})
        rank_zero_info(f"Wrote {len(texts)} answers to {self.output_dir}.")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        (self.output_dir / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
