"""The encoder families that can be pruned, by transformers ``model_type``."""

from __future__ import annotations

from pgb_lightning.encoders.albert import ALBERT
from pgb_lightning.encoders.bert import BERT
from pgb_lightning.encoders.bert_variants import ESM, MEGATRON_BERT, ROBERTA_PRELAYERNORM, ROFORMER, XLM_ROBERTA_XL
from pgb_lightning.encoders.deberta import DEBERTA
from pgb_lightning.encoders.deberta_v2 import DEBERTA_V2
from pgb_lightning.encoders.distilbert import DISTILBERT
from pgb_lightning.encoders.eurobert import EUROBERT
from pgb_lightning.encoders.family import Family
from pgb_lightning.encoders.jina_embeddings_v3 import JINA_EMBEDDINGS_V3
from pgb_lightning.encoders.modernbert import MODERNBERT
from pgb_lightning.encoders.mpnet import MPNET
from pgb_lightning.encoders.nomic_bert import NOMIC_BERT
from pgb_lightning.encoders.pruned_config import announce

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT,
    "ernie": BERT,
    "data2vec-text": BERT,
    "rembert": BERT,
    "roc_bert": BERT,
    "layoutlm": BERT,
    "markuplm": BERT,
    "tapas": BERT,
    "megatron-bert": MEGATRON_BERT,
    "roberta-prelayernorm": ROBERTA_PRELAYERNORM,
    "xlm-roberta-xl": XLM_ROBERTA_XL,
    "esm": ESM,
    "roformer": ROFORMER,
    "albert": ALBERT,
    "deberta": DEBERTA,
    "deberta-v2": DEBERTA_V2,
    "distilbert": DISTILBERT,
    "eurobert": EUROBERT,
    "gte": NOMIC_BERT,
    "jina_embeddings_v3": JINA_EMBEDDINGS_V3,
    "modernbert": MODERNBERT,
    "mpnet": MPNET,
    "nomic_bert": NOMIC_BERT,
}


def register(model_type: str, family: Family) -> None:
    """Make the encoders of another transformers ``model_type`` available for pruning and export.

    The package that registers a family must be imported before a folder with such a pruned model is loaded. For export,
    the configuration (``AutoConfig.register``) and the models (``AutoModel.register`` and the like) must be registered
    with transformers, before or after this call.

    Args:
        model_type: The configuration's ``model_type``, such as ``"bert"``.
        family: How its layers are built.

    Raises:
        TypeError: If ``model_type`` is not a string, or ``family`` not a :class:`Family`.
        ValueError: If the type is empty, or registered with another family.

    Example:
        >>> register("bert", BERT)
    """
    if not isinstance(model_type, str) or not isinstance(family, Family):
        raise TypeError(f"model_type={model_type!r} must be a string, and family={family!r} a Family.")
    if not model_type:
        raise ValueError("model_type='' is empty. Use the model_type of the configuration, such as 'bert'.")
    if FAMILIES.setdefault(model_type, family) is not family:
        raise ValueError(
            f"model_type={model_type!r} is registered with another family; delete FAMILIES[{model_type!r}] first."
        )
    announce(model_type)


for _model_type in FAMILIES:
    announce(_model_type)
