"""LightningModules that fine-tune, and prune and re-fine-tune, transformers encoders."""

from pgb_lightning.modules.question_answering import QuestionAnswering
from pgb_lightning.modules.text_classification import TextClassification

__all__ = ["QuestionAnswering", "TextClassification"]
