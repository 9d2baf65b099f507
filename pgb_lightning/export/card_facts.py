"""Facts for a model card that cannot be read from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CardFacts:
    """Facts for a model card that cannot be read from the model. Facts that are not given are omitted from the card.

    Args:
        base_model: Name on the Hub of the model that was fine-tuned. Local paths are omitted from the card.
        task: The task for which it was fine-tuned, such as ``"sst2"``.
        scores: Scores by name, such as ``{"accuracy": 0.874}``.
        latency: Milliseconds per call by name, such as ``{"pruned, batch 1": 10.4}``.
        dense_scores: Scores of the dense model by the same names.
        dataset: The data set on the Hub with the rows on which the model was scored, with its configuration after a
            colon if it has several (``"nyu-mll/glue:sst2"``). Local files are omitted from the card.
        split: The name of the split with these rows.
        is_sentence_embedding: Whether the folder is an embedding model of sentence-transformers.
        inherited: Entries of the dense model's card that also hold for the pruned model, such as its license.
        repo_id: Name of the Hub repository to which the folder will be pushed.
    """

    base_model: str | None = None
    task: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)
    dense_scores: Mapping[str, float] = field(default_factory=dict)
    dataset: str | None = None
    split: str | None = None
    is_sentence_embedding: bool = False
    inherited: Mapping[str, Any] = field(default_factory=dict)
    repo_id: str | None = None


def hub_name(name: str | None) -> str | None:
    """Return a name on the Hub, or ``None`` if it is a local path.

    Example:
        >>> hub_name("bert-base-uncased"), hub_name("./my-model")
        ('bert-base-uncased', None)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
