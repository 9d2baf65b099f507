"""GLUE's official scores, against values worked out by hand from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pgb_lightning.glue_tasks import TASKS, get_task
from pgb_lightning.modules.metrics import make_metrics

# 3 hits, 2 false alarms, 1 miss and 4 right refusals, served in batches of different sizes.
SAID = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
TRUE = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def score(task: str, said: list[float], true: list[float], num_labels: int) -> dict[str, float]:
    metrics = make_metrics(get_task(task), num_labels)
    dtype = torch.float32 if num_labels == 1 else torch.long
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        metrics.update(torch.tensor(said[part], dtype=dtype), torch.tensor(true[part], dtype=dtype))
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_and_accuracy_of_pairs(task: str) -> None:
    assert score(task, SAID, TRUE, 2) == pytest.approx({"accuracy": 7 / 10, "f1": 6 / 9}, abs=1e-6)
    # F1 is that of class 1: with the classes changed over it is another number.
    flipped = score(task, [1 - value for value in SAID], [1 - value for value in TRUE], 2)
    assert flipped == pytest.approx({"accuracy": 7 / 10, "f1": 8 / 11}, abs=1e-6)


def test_matthews_correlation_of_cola() -> None:
    expected = (3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5)
    assert score("cola", SAID, TRUE, 2) == pytest.approx({"matthews": expected}, abs=1e-6)
    assert score("cola", TRUE, TRUE, 2) == pytest.approx({"matthews": 1}, abs=1e-6)
    assert score("cola", [1 - value for value in TRUE], TRUE, 2) == pytest.approx({"matthews": -1}, abs=1e-6)


def test_correlations_of_stsb_ties_included() -> None:
    # Deviations from the means 2 and 3: (-2, -1, 0, 1, 2) and (-2, 0, -2, 1, 3).
    expected = (4 + 0 + 0 + 1 + 6) / math.sqrt(10 * 18)
    found = score("stsb", [0, 1, 2, 3, 4], [1, 3, 1, 4, 6], 1)
    # Ranks of the second: 1.5, 3, 1.5, 4, 5.
    spearman = (3 + 0 + 0 + 1 + 4) / math.sqrt(10 * 9.5)
    assert found == pytest.approx({"spearman": spearman, "pearson": expected}, abs=1e-6)


@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_correlations_of_as_many_rows_as_stsb_has(spread: float) -> None:
    draw = np.random.default_rng(0)
    true = draw.uniform(0, 5, 1500).astype(np.float32).round(1)
    said = (2.5 + spread * (true - 2.5 + draw.normal(size=1500))).astype(np.float32)
    found = score("stsb", said.tolist(), true.tolist(), 1)
    assert found["pearson"] == pytest.approx(stats.pearsonr(said.astype(float), true.astype(float))[0], abs=1e-6)
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, true)[0], abs=1e-6)


def test_accuracy_of_three_classes() -> None:
    assert score("mnli", [0, 1, 2, 2, 1], [0, 1, 1, 2, 0], 3) == pytest.approx({"accuracy": 3 / 5}, abs=1e-6)


@pytest.mark.parametrize("name", list(TASKS))
def test_a_tasks_metrics_are_there_in_its_order(name: str) -> None:
    task = get_task(name)
    metrics = make_metrics(task, task.num_labels)
    assert set(metrics) == set(task.metrics)
