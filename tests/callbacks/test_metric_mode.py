"""Whether higher or lower is better, from the name of a metric."""

from __future__ import annotations

import pytest

from pgb_lightning.callbacks.metric_mode import Mode, contradicts, infer_mode


@pytest.mark.parametrize(
    ("names", "mode"),
    [
        ("val_loss loss val/loss valLoss val_loss/dataloader_idx_0 losses/val val_rmse perplexity dice_loss", "min"),
        ("val_error word_error_rate val-mae val.nll brier_score mse_score2/loss loss1 f1_error val_logloss", "min"),
        ("val_accuracy accuracy val/F1 valAcc val_f1_micro losses/accuracy rouge2 rougeL val_map50 val_score", "max"),
        ("val_spearman val_accuracy/dataloader_idx_1 val_auroc R2 score exact_match BinaryF1Score", "max"),
        ("lossless val_metric terror val_acclaim mapping neg_mean_squared_error accuracy_drop mse_accuracy x", None),
        ("val_cosine_distance jaccard-distance f1_std", None),
    ],
)
def test_modes_follow_whole_words(names: str, mode: Mode | None) -> None:
    assert {name: infer_mode(name) for name in names.split()} == dict.fromkeys(names.split(), mode)


def test_only_certain_names_contradict_a_mode() -> None:
    assert contradicts("val_loss", "max")
    assert contradicts("val_accuracy", "min")
    assert not contradicts("val_loss", "min")
    assert not any(
        contradicts(name, "min") or contradicts(name, "max") for name in ("val_metric", "neg_loss", "cosine_distance")
    )
    assert not contradicts("energy_score", "min")
