"""The metrics of a task."""

from __future__ import annotations

from collections.abc import Callable

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from pgb_lightning.glue_tasks import GLUETask, MetricName


def make_metrics(task: GLUETask | None, num_labels: int) -> MetricCollection:
    """Create new metrics, which take predictions (not logits) and labels.

    Args:
        task: The task, or ``None`` for accuracy, or for both correlations in regression.
        num_labels: Number of classes, or 1 for regression.

    Returns:
        The metrics by name. F1 is that of class 1, as in GLUE.

    Example:
        >>> list(make_metrics(None, num_labels=3))
        ['accuracy']
    """
    makers: dict[MetricName, Callable[[], Metric]] = {
        "accuracy": lambda: MulticlassAccuracy(num_labels, average="micro"),
        "f1": BinaryF1Score,
        # The additional class never occurs and does not change the score, except that a model which always predicts
        # the same class scores 0. For exactly two classes, torchmetrics returns another number in this case.
        "matthews": lambda: MulticlassMatthewsCorrCoef(num_labels + 1),
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    default: tuple[MetricName, ...] = ("spearman", "pearson") if num_labels == 1 else ("accuracy",)
    return MetricCollection({name: makers[name]() for name in (task.metrics if task else default)})
