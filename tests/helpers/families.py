"""A tiny random model of every registered family. A new family needs an entry in :data:`TINY`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from helpers.tiny import PADDING, VOCABULARY
from pgb_lightning.encoders.families import FAMILIES

#: Sizes under the names that most configurations have. Widths are multiples of 12, which 1, 2, 3, 4 and 6 divide.
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}

#: Families whose positions begin after the index of the padding token.
SHIFTED: dict[str, Any] = {
    **SIZES,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}

#: The settings of a tiny configuration of each family, by ``model_type``. Choose them so that everything that is
#: special about a family is there: several kinds of layers, groups of keys and values, more positions than one window.
#: A name that goes on after a space is another configuration of a family.
TINY: dict[str, dict[str, Any]] = {
    "albert": {**SIZES, "num_hidden_layers": 3, "num_hidden_groups": 2, "embedding_size": 24},
    "bert": SIZES,
    "camembert": SHIFTED,
    "data2vec-text": SHIFTED,
    "deberta": {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 16,
        "position_biased_input": False,
    },
    "deberta with absolute positions": SIZES,
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "deberta-v2 with a convolution": {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["c2p"],
        "share_att_key": True,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "deberta-v2 with position projections": {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 16,
        "type_vocab_size": 2,
    },
    "deberta-v2 with absolute positions": SIZES,
    "distilbert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 64},
    "electra": {**SIZES, "embedding_size": 24},
    "ernie": SIZES,
    "esm": {**SHIFTED, "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 4},
    "eurobert": {
        **SIZES,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "mask_token_id": 4,
    },
    "gte": {**SIZES, "type_vocab_size": 1},
    "jina_embeddings_v3": {**SIZES, "type_vocab_size": 1, "bos_token_id": 2, "eos_token_id": 3},
    "layoutlm": SIZES,
    "markuplm": SIZES,
    "megatron-bert": SIZES,
    "modernbert": {
        **SIZES,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "mpnet": {**SIZES, "max_position_embeddings": 66},
    "nomic_bert": SIZES,
    "rembert": {**SIZES, "input_embedding_size": 24},
    "roberta": SHIFTED,
    "roberta-prelayernorm": SHIFTED,
    "roc_bert": {**SIZES, "pronunciation_vocab_size": 60, "shape_vocab_size": 60},
    "roformer": {**SIZES, "embedding_size": 24},
    "tapas": SIZES,
    "xlm-roberta": SHIFTED,
    "xlm-roberta-xl": SHIFTED,
}

#: The families of this package, without those that tests register for models of their own.
INCLUDED = {model_type: family for model_type, family in FAMILIES.items() if model_type in CONFIG_MAPPING_NAMES}

#: One model type of each :class:`Family`, for checks that take long.
REPRESENTATIVES = list({id(family): model_type for model_type, family in reversed(INCLUDED.items())}.values())[::-1]

#: The names in :data:`TINY` that differ in what runs, not only in embeddings and the names of classes.
DIFFERENT = [name for name in TINY if name in REPRESENTATIVES or " " in name]


def registered(name: str) -> str:
    """Return the ``model_type`` of a key of :data:`TINY`."""
    return name.partition(" ")[0]


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """Return a tiny configuration of a family; ``overrides`` change its settings."""
    settings = {"vocab_size": VOCABULARY, "pad_token_id": PADDING, **TINY[model_type], **overrides}
    return AutoConfig.for_model(registered(model_type), **settings)


def tiny_model(model_type: str, head: str = "SequenceClassification", seed: int = 0, **overrides: Any) -> Any:
    """Build a tiny random model in eval mode.

    All of its weights are random, those of biases and norms included, and large enough for its outputs to depend on
    every matrix. What a new model sets to zero or one hides mistakes.

    Args:
        model_type: A key of :data:`TINY`.
        head: What ``AutoModelFor`` is followed by; empty for the encoder alone.
        seed: Determines the weights.
        overrides: Settings of the configuration.
    """
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(tiny_config(model_type, **overrides))
    if model.device.type != "meta":
        randomize(model, seed)
    return model.eval()


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give all parameters random values, in place: matrices with entries of about 0.15, vectors near what they were."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(0.15 * noise)
        else:
            parameter.add_(0.3 * noise)


def tiny_batches(
    count: int = 2, size: int = 8, length: int = 13, seed: int = 0, padding: str = "right"
) -> list[dict[str, Tensor]]:
    """Make labeled batches of ragged sentences.

    Args:
        count: Number of batches.
        size: Sentences in a batch.
        length: The longest length, which one sentence of every batch has.
        seed: Determines the tokens.
        padding: ``"right"``, ``"left"``, or ``"none"`` for sentences of one length and no mask.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        lengths = torch.randint(3, length + 1, (size, 1), generator=generator)
        lengths[0] = length
        tokens = torch.randint(4, VOCABULARY, (size, length), generator=generator)
        labels = torch.randint(2, (size,), generator=generator)
        if padding == "none":
            made.append({"input_ids": tokens, "labels": labels})
            continue
        mask = (torch.arange(length) < lengths).long()
        mask = mask.flip(1) if padding == "left" else mask
        made.append({"input_ids": tokens.where(mask > 0, PADDING), "attention_mask": mask, "labels": labels})
    return made


@torch.no_grad()
def tiny_logits(model: nn.Module, batches: list[dict[str, Tensor]] | None = None) -> Tensor:
    """Return the logits of a classifier for some batches, in eval mode."""
    batches = tiny_batches(2, seed=5) if batches is None else batches
    return torch.cat([model.eval()(**batch).logits for batch in batches])


@contextmanager
def accepted(dense: Any) -> Iterator[bool]:
    """Say whether a dense model runs; if not, as DeBERTa in half precision, the pruned one has the same error."""
    try:
        tiny_logits(dense)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            yield False
    else:
        yield True
