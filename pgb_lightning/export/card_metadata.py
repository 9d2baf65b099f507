"""The metadata at the top of a model card, which the Hub uses for its filters and tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card_facts import CardFacts, hub_name

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

#: The Hub's pipeline tag for each suffix of a model class's name.
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
}

#: The library that loads a file, by its suffix; transformers loads a folder.
LIBRARIES = {".onnx": "transformers.js", ".xml": "openvino", ".pt2": "pytorch"}

#: The Hub's metric and display name for each name of a score.
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "f1": ("f1", "F1"),
    "f1_micro": ("f1", "F1 (micro)"),
    "f1_macro": ("f1", "F1 (macro)"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "matthews": ("matthews_correlation", "Matthews correlation"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "spearman": ("spearmanr", "Spearman correlation"),
    "exact_match": ("exact_match", "Exact match"),
}


def make_metadata(model: PreTrainedModel, kind: str, facts: CardFacts, is_quantized: bool) -> ModelCardData:
    """Return the metadata of a card.

    Scores are listed in the Hub's ``model-index`` if there is a data set on the Hub, which it requires. Scores that
    were measured before quantization are not listed for a quantized file.

    Args:
        model: The model.
        kind: The content of the folder, as for :func:`~pgb_lightning.export.card.make_card`.
        facts: Facts that cannot be read from the model.
        is_quantized: Whether its weights are integers.
    """
    from huggingface_hub import ModelCardData

    suffix, base = Path(kind).suffix, hub_name(facts.base_model)
    pipeline = pipeline_tag(model, facts)
    library = LIBRARIES.get(suffix, "transformers")
    tags = ["pgb-lightning", "pruned"]
    if suffix:
        tags.append({".pt2": "torch.export", ".xml": "openvino"}.get(suffix, "onnx"))
    elif facts.is_sentence_embedding:
        library = "sentence-transformers"
        tags += ["sentence-transformers", "feature-extraction"]
    repository = _dataset(facts)[0]
    known = [] if is_quantized else [name for name in facts.scores if _plain(name) in METRICS]
    results, entries = _results(facts, known, pipeline), dict(facts.inherited)
    return ModelCardData(
        base_model=base or entries.pop("base_model", None),
        library_name=library,
        pipeline_tag=pipeline,
        tags=tags,
        datasets=None if repository is None else [repository],
        metrics=list(dict.fromkeys(METRICS[_plain(name)][0] for name in known)) or None,
        eval_results=results or None,
        model_name=(facts.repo_id or title(model, facts)) if results else None,
        **entries,
    )


def pipeline_tag(model: PreTrainedModel, facts: CardFacts) -> str:
    """Return the Hub's name of a model's task."""
    if facts.is_sentence_embedding:
        return "sentence-similarity"
    name = type(model).__name__
    return next((tag for suffix, tag in PIPELINES.items() if name.endswith(suffix)), "feature-extraction")


def title(model: PreTrainedModel, facts: CardFacts) -> str:
    """Return the title of a card."""
    name = hub_name(facts.base_model) or find_encoder(model).model_type
    return " ".join(filter(None, (name, f"on {facts.task}," if facts.task else "", "pruned")))


def _results(facts: CardFacts, names: list[str], pipeline: str) -> list[EvalResult]:
    """Return the entries of ``model-index``. Without a data set on the Hub there are none, as each must name one."""
    from huggingface_hub import EvalResult

    repository, configuration = _dataset(facts)
    if repository is None:
        return []
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=repository,
            dataset_name=facts.task or facts.dataset or repository,
            dataset_config=configuration,
            dataset_split=facts.split,
            metric_type=METRICS[_plain(name)][0],
            metric_name=METRICS[_plain(name)][1],
            metric_value=round(float(facts.scores[name]), 4),
        )
        for name in names
    ]


def _dataset(facts: CardFacts) -> tuple[str | None, str | None]:
    """Return the name of the data set on the Hub and its configuration, if there are any."""
    name, _, configuration = (facts.dataset or "").partition(":")
    return hub_name(name or None), configuration or None


def _plain(name: str) -> str:
    """Return the name of a metric without the name of the stage."""
    return name.removeprefix("val_")
