"""Numbers that the paper publishes for BERT-base, in percent: its Tables 1, 3 and 4.

Lim, Lee, Choi: *PGB: One-Shot Pruning for BERT via Weight Grouping and Permutation*, JAIR 85, 2026.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Tasks in the order of Table 1. The metric is the paper's; for SQuAD it is F1.
TASKS = ("qnli", "qqp", "sst2", "cola", "stsb", "mrpc", "rte", "squad", "squad_v2")


def _by_task(*scores: float | None) -> dict[str, float]:
    return {task: score for task, score in zip(TASKS, scores, strict=True) if score is not None}


DENSE = _by_task(91.4, 91.5, 93.2, 58.9, 89.2, 86.3, 66.8, 88.3, 74.2)
"""Scores of the fine-tuned BERT-base by task (Table 1)."""

TABLE_1: dict[float, dict[str, dict[str, float]]] = {
    0.5: {
        "EBERT": _by_task(89.9, 90.6, 90.8, None, 87.1, 72.8, 52.7, 85.2, 72.5),
        "DynaBERT": _by_task(88.3, 90.7, 91.6, 51.2, 86.4, 77.8, 63.5, None, None),
        "CoFi": _by_task(88.8, 90.6, 90.1, 53.6, 88.0, 83.5, 56.7, None, None),
        "PGB": _by_task(90.3, 91.1, 92.3, 54.9, 88.8, 84.3, 64.6, 86.8, 73.5),
    },
    0.88: {
        "EBERT": _by_task(81.8, 88.1, 87.5, None, 84.9, None, 49.5, None, None),
        "DynaBERT": _by_task(83.5, 86.8, 88.5, 18.7, 82.9, 72.6, 53.1, None, None),
        "CoFi": _by_task(84.7, 89.8, 89.0, 32.1, 85.1, 75.3, 52.4, None, None),
        "PGB": _by_task(86.4, 90.1, 89.6, 39.5, 85.3, 78.2, 54.3, 81.2, 69.7),
    },
}
"""Scores after re-finetuning by ratio, method and task (Table 1)."""

TABLE_3: dict[str, dict[float, tuple[float, float]]] = {
    "sst2": {0.4: (92.2, 92.7), 0.6: (90.3, 91.6)},
    "qnli": {0.4: (90.1, 91.0), 0.6: (88.2, 89.4)},
    "mrpc": {0.4: (84.8, 85.1), 0.6: (80.9, 83.5)},
}
"""Scores of PGB before and after re-finetuning by task and fraction of FLOPs that is removed (Table 3)."""


@dataclass(frozen=True)
class Efficiency:
    """A row of Table 4: QQP at 88 % on one RTX A6000.

    Args:
        epochs: Epochs of pruning and of re-finetuning.
        hours: Hours of pruning and of re-finetuning, at most.
        gflops: FLOPs of the pruned model, in billions.
        score: Accuracy.
    """

    epochs: tuple[int, int]
    hours: tuple[float, float]
    gflops: float
    score: float


TABLE_4 = {
    "EBERT": Efficiency((3, 3), (3.5, 2), 2.78, 88.1),
    "DynaBERT": Efficiency((2, 3), (25, 38), 2.60, 86.8),
    "CoFi": Efficiency((20, 20), (26, 23), 2.97, 89.8),
    "PGB": Efficiency((0, 3), (0.1, 2), 2.60, 90.1),
}
"""Cost of pruning and re-finetuning by method (Table 4)."""
