"""The torchmetrics objects that score a task."""

from __future__ import annotations

from collections.abc import Callable

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from pgb_lightning.glue_tasks import GLUETask, MetricName


def make_metrics(task: GLUETask | None, num_labels: int) -> MetricCollection:
    """Make fresh metrics, which take predictions (not logits) and labels.

    Args:
        task: Names the metrics; None for accuracy, or the two correlations in regression.
        num_labels: Number of classes, or 1 for regression.

    Returns:
        The metrics by name. F1 is that of class 1, as GLUE has it for its two-class tasks.

    Example:
        >>> list(make_metrics(None, num_labels=3))
        ['accuracy']
    """
    makers: dict[MetricName, Callable[[], Metric]] = {
        "accuracy": lambda: MulticlassAccuracy(num_labels, average="micro"),
        "f1": BinaryF1Score,
        # With one class more, which never occurs: the same number, except that a model which always says the
        # same scores 0. Of exactly two classes, torchmetrics makes some other number then.
        "matthews": lambda: MulticlassMatthewsCorrCoef(num_labels + 1),
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    default: tuple[MetricName, ...] = ("spearman", "pearson") if num_labels == 1 else ("accuracy",)
    return MetricCollection({name: makers[name]() for name in (task.metrics if task else default)})
