"""LightningModules that fine-tune, prune and re-finetune transformers encoders."""

from pgb_lightning.modules.question_answering import QuestionAnswering
from pgb_lightning.modules.sentence_embedding import SentenceEmbedding
from pgb_lightning.modules.text_classification import TextClassification
from pgb_lightning.modules.token_classification import TokenClassification

__all__ = ["QuestionAnswering", "SentenceEmbedding", "TextClassification", "TokenClassification"]
