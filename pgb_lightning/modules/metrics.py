"""The metrics of a task."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassMatthewsCorrCoef,
    MultilabelF1Score,
    MultilabelStatScores,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from pgb_lightning.glue_tasks import GLUETask, MetricName


class LabelMacroF1(MultilabelStatScores):
    """The F1 of each label, averaged over the labels that are in the data or among the predictions.

    The F1 of a label that is neither in the data nor among the predictions is 0 / 0. ``MultilabelF1Score`` counts it as
    0, so a perfect model would not score 1 on data without some of the labels. Its multi-class counterpart excludes
    such classes, as this metric does.

    Args:
        num_labels: Number of labels.

    Example:
        >>> import torch
        >>> metric = LabelMacroF1(num_labels=3)
        >>> metric.update(torch.tensor([[1, 0, 0], [0, 1, 0]]), torch.tensor([[1, 0, 0], [0, 0, 0]]))
        >>> metric.compute()  # 1 for the first label, 0 for the second
        tensor(0.5000)
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average=None)

    def compute(self) -> Tensor:
        """Return the mean F1, or 0 if there are no labels."""
        true_positive, false_positive, _, false_negative, _ = super().compute().unbind(-1)
        counts = 2 * true_positive + false_positive + false_negative
        occurs = counts > 0
        return (2 * true_positive[occurs] / counts[occurs]).sum() / occurs.sum().clamp_min(1)


def make_metrics(task: GLUETask | None, num_labels: int, multi_label: bool = False) -> MetricCollection:
    """Create new metrics, which take predictions (not logits) and labels.

    Args:
        task: The task. With ``None``, the metrics are accuracy, both correlations for regression, or F1 for
            multi-label classification.
        num_labels: Number of classes or labels, or 1 for regression.
        multi_label: Whether each row has multiple labels, with a 0 or 1 for each.

    Returns:
        The metrics by name. F1 is that of class 1, as in GLUE.

    Example:
        >>> list(make_metrics(None, num_labels=3))
        ['accuracy']
        >>> list(make_metrics(None, num_labels=3, multi_label=True))
        ['f1_macro', 'f1_micro']
    """
    if multi_label:
        return MetricCollection(
            {"f1_micro": MultilabelF1Score(num_labels, average="micro"), "f1_macro": LabelMacroF1(num_labels)}
        )
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
