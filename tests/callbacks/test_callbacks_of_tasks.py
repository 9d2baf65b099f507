"""Pruning and distillation of models that tag tokens or give texts several labels, with and without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
from helpers.labeled import loader, multi_label_batches, token_batches

from pgb_lightning.callbacks import Distillation, PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.modules import TextClassification, TokenClassification
from pgb_lightning.modules.classification import Classification
from pgb_lightning.surgery.checks import is_pruned

MakeTrainer = Callable[..., L.Trainer]


def make(kind: str, folder: str) -> tuple[Classification, list[Any]]:
    """Return a module and its batches."""
    if kind == "labels":
        module: Classification = TextClassification(
            folder, num_labels=3, problem_type="multi_label_classification", learning_rate=1e-3
        )
        return module, multi_label_batches(6)
    return TokenClassification(folder, num_labels=5, learning_rate=1e-3), token_batches(6)


@pytest.mark.parametrize("kind", ["labels", "tokens"])
@pytest.mark.parametrize(("labeled", "weight"), [(True, 0.0), (True, 0.5), (False, 0.0)])
def test_a_model_is_pruned_and_learns_from_its_dense_self(
    labeled: bool,
    weight: float,
    kind: str,
    tiny_model_folder: Any,
    trainer: MakeTrainer,
    recwarn: pytest.WarningsRecorder,
) -> None:
    module, batches = make(kind, str(tiny_model_folder("bert")))
    fit = trainer(PGBCallback(0.5), Distillation(task_weight=weight))
    fit.fit(module, loader(batches, labeled))
    assert is_pruned(find_encoder(module))
    assert fit.global_step == len(batches)
    assert fit.callback_metrics["train_distillation"] > 0
    assert ("train_loss" in fit.callback_metrics) is labeled
    # Labels are drawn from the predictions where there are none: from sigmoids or a softmax, by the problem type.
    said = any("fisher='predictions'" in str(warning.message) for warning in recwarn)
    assert said is not labeled
