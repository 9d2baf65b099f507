"""Precision, recall and F1 of entities as in the CoNLL script, over the texts of all processes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pgb_lightning.label_kind import IGNORED

#: seqeval's prefixes for the prefixes of the schemes IOB, IOBES, BILOU and BMES.
MARKS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}

_TAG = re.compile(f"([{''.join(MARKS)}])-(.+)", re.DOTALL)


def are_entity_tags(names: Sequence[str]) -> bool:
    """Return whether class names are tags of entities: some are ``B-...`` or ``I-...``.

    Example:
        >>> are_entity_tags(["O", "B-PER", "I-PER"]), are_entity_tags(["NOUN", "VERB", "INTJ"])
        (True, False)
    """
    return any(name.startswith(("B-", "I-")) for name in names)


class EntityMetric(Metric):
    """Collect the tags of all texts over all processes, and compare the entities they mark.

    An entity is correct if its type, its first and its last word are correct. Precision, recall and F1 are computed
    over all entities (micro average) by ``seqeval`` in its default mode, which follows the CoNLL script: an ``I-`` tag
    after another type begins an entity. Names that are not the tag of a type, such as ``O``, are outside of entities.

    Args:
        names: The class names in the order of the ids.

    Example:
        >>> metric = EntityMetric(["O", "B-PER", "I-PER"])
        >>> metric.update(torch.tensor([[1, 2, 0, 0]]), torch.tensor([[1, 2, 0, 1]]))
        >>> {name: round(float(score), 2) for name, score in metric.compute().items()}
        {'f1': 0.67, 'precision': 1.0, 'recall': 0.5, 'accuracy': 0.75}
    """

    tags: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = [_to_tag(name) for name in names]
        self.add_state("tags", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add texts.

        Args:
            predictions: Predicted ids, (batch, length).
            labels: Correct ids, (batch, length). Tokens with -100 are ignored.
        """
        pairs = torch.stack([predictions, labels], -1)
        # A row of -100 ends each text, so that the texts of all batches can be joined.
        pairs = torch.cat([pairs, pairs.new_full((len(labels), 1, 2), IGNORED)], 1)
        is_end = torch.arange(pairs.shape[1], device=labels.device) == labels.shape[1]
        # Flat, with the data type that torchmetrics gathers from a process without texts.
        self.tags.append(pairs[(pairs[..., 1] != IGNORED) | is_end].flatten().to(self.dtype))

    def compute(self) -> dict[str, Tensor]:
        """Return ``f1``, ``precision``, ``recall`` and the ``accuracy`` of tokens, all 0 if nothing was scored."""
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support  # slow to import

        ids = dim_zero_cat(self.tags).cpu() if len(self.tags) else torch.zeros(0)
        pairs = ids.long().view(-1, 2).numpy()
        is_end = pairs[:, 1] == IGNORED
        texts = [text[:-1] for text in np.split(pairs, np.flatnonzero(is_end) + 1)[:-1]]
        # seqeval needs at least one text.
        predicted, correct = ([[self.names[row[side]] for row in text] for text in texts] or [[]] for side in (0, 1))
        precision, recall, f1, _ = precision_recall_fscore_support(correct, predicted, average="micro", zero_division=0)
        same = (pairs[:, 0] == pairs[:, 1])[~is_end]
        scores = {"f1": f1, "precision": precision, "recall": recall, "accuracy": same.sum() / max(len(same), 1)}
        return {name: torch.tensor(float(value), device=self.device) for name, value in scores.items()}


def _to_tag(name: str) -> str:
    """Convert a tag to seqeval's name."""
    found = _TAG.fullmatch(name)
    return f"{MARKS[found[1]]}-{found[2]}" if found else "O"
