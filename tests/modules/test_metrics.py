"""The official GLUE scores, compared with values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pgb_lightning.glue_tasks import TASKS, get_task
from pgb_lightning.modules.metrics import make_metrics

# 3 labels positives, 2 false positives, 1 false negative and 4 labels negatives, in batches of different sizes.
PREDICTED = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
LABELS = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def score(task: str, predicted: list[float], labels: list[float], num_labels: int) -> dict[str, float]:
    metrics = make_metrics(get_task(task), num_labels)
    dtype = torch.float32 if num_labels == 1 else torch.long
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        metrics.update(torch.tensor(predicted[part], dtype=dtype), torch.tensor(labels[part], dtype=dtype))
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_and_accuracy_of_pairs(task: str) -> None:
    assert score(task, PREDICTED, LABELS, 2) == pytest.approx({"accuracy": 7 / 10, "f1": 6 / 9}, abs=1e-6)
    # F1 is that of class 1, so it changes if the classes are swapped.
    flipped = score(task, [1 - value for value in PREDICTED], [1 - value for value in LABELS], 2)
    assert flipped == pytest.approx({"accuracy": 7 / 10, "f1": 8 / 11}, abs=1e-6)


def test_matthews_correlation_of_cola() -> None:
    expected = (3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5)
    assert score("cola", PREDICTED, LABELS, 2) == pytest.approx({"matthews": expected}, abs=1e-6)
    assert score("cola", LABELS, LABELS, 2) == pytest.approx({"matthews": 1}, abs=1e-6)
    assert score("cola", [1 - value for value in LABELS], LABELS, 2) == pytest.approx({"matthews": -1}, abs=1e-6)


def test_correlations_of_stsb_with_ties() -> None:
    # Deviations from the means 2 and 3: (-2, -1, 0, 1, 2) and (-2, 0, -2, 1, 3).
    expected = (4 + 0 + 0 + 1 + 6) / math.sqrt(10 * 18)
    found = score("stsb", [0, 1, 2, 3, 4], [1, 3, 1, 4, 6], 1)
    # Ranks of the second: 1.5, 3, 1.5, 4, 5.
    spearman = (3 + 0 + 0 + 1 + 4) / math.sqrt(10 * 9.5)
    assert found == pytest.approx({"spearman": spearman, "pearson": expected}, abs=1e-6)


@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_correlations_of_1500_rows(spread: float) -> None:
    draw = np.random.default_rng(0)
    labels = draw.uniform(0, 5, 1500).astype(np.float32).round(1)
    predicted = (2.5 + spread * (labels - 2.5 + draw.normal(size=1500))).astype(np.float32)
    found = score("stsb", predicted.tolist(), labels.tolist(), 1)
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted.astype(float), labels.astype(float))[0], abs=1e-6)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, labels)[0], abs=1e-6)


def test_accuracy_of_three_classes() -> None:
    assert score("mnli", [0, 1, 2, 2, 1], [0, 1, 1, 2, 0], 3) == pytest.approx({"accuracy": 3 / 5}, abs=1e-6)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_has_its_metrics(name: str) -> None:
    task = get_task(name)
    metrics = make_metrics(task, task.num_labels)
    assert set(metrics) == set(task.metrics)
