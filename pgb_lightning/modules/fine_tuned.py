"""Determine the module for a fine-tuned model by its head."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from pgb_lightning.heads import Labels, head_of, read_config, stored_class
from pgb_lightning.modules.pooling import read_pooling
from pgb_lightning.packaged import explain_model_errors, resolve_model

#: The tasks of heads that the data modules for tables do not support, by the suffix of the class name.
OTHER_HEADS = {
    "ForMaskedLM": "masked language modeling",
    "ForMultipleChoice": "multiple choice",
    "ForNextSentencePrediction": "next sentence prediction",
    "ForPreTraining": "pretraining",
    "ForQuestionAnswering": "question answering",
}


def require_head(model: str, setting: str = "model") -> Labels | None:
    """Return the labels of a fine-tuned model, or ``None`` for an embedding model of sentence-transformers.

    Args:
        model: A folder, or a name on the Hub.
        setting: The name of the user's setting, for messages.

    Raises:
        MisconfigurationException: If the model cannot be read, or is neither fine-tuned nor an embedding model.
    """
    config = read_config(model, setting)
    head = head_of(config)
    if head is None:
        if read_pooling(model) is not None:
            return None
        name = stored_class(config)
        if other := next((suffix for suffix in OTHER_HEADS if name.endswith(suffix)), None):
            raise MisconfigurationException(
                f"{setting}={model!r} is a {name}, and {OTHER_HEADS[other]} is not a task of this command. "
                "Fine-tune it for another task first, or prune it in Python: pgb_lightning.prune(model, batches)."
            )
        raise MisconfigurationException(
            f"{setting}={model!r} is not fine-tuned for classification, regression or token classification (its "
            "configuration names no such class under 'architectures'), and is no embedding model (there is no "
            "modules.json). Fine-tune it first, such as with `pgb fit`, and pass the result."
        )
    is_tagger = head.problem_type == "token_classification"
    auto = AutoModelForTokenClassification if is_tagger else AutoModelForSequenceClassification
    with explain_model_errors(model, "weights", setting):
        _, info = auto.from_pretrained(resolve_model(model), output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise MisconfigurationException(
            f"{setting}={model!r} is not fine-tuned: it has no weights for {', '.join(missing[:4])}. Pass the folder "
            "that was saved after fine-tuning."
        )
    return head


def module_entry(model: str, head: Labels | None, **settings: Any) -> dict[str, Any]:
    """Return the class and the arguments of a model's module, as in the configuration of ``pgb fit``.

    Args:
        model: A folder, or a name on the Hub.
        head: Its labels; ``None`` for an embedding model.
        settings: Further arguments.
    """
    init_args: dict[str, Any] = {"model_name_or_path": model, **settings}
    if head is None:
        return {"class_path": "pgb_lightning.modules.SentenceEmbedding", "init_args": init_args}
    init_args["num_labels"] = head.num_labels
    if head.problem_type == "token_classification":
        return {"class_path": "pgb_lightning.modules.TokenClassification", "init_args": init_args}
    init_args["problem_type"] = head.problem_type
    return {"class_path": "pgb_lightning.modules.TextClassification", "init_args": init_args}
