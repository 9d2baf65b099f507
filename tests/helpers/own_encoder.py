"""A user's own encoder: a transformers model that is not part of transformers, registered for pruning and export.

It is unlike BERT on purpose: pre-norm, fused queries, keys and values, gated, without biases, with names of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from pgb_lightning.encoders import Family, register


class OwnEncoderConfig(PretrainedConfig):
    model_type = "own_encoder"
    vocab_size: int = 60
    hidden_size: int = 48
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    neurons: int = 96
    max_position_embeddings: int = 64


class OwnAttention(nn.Module):
    def __init__(self, config: OwnEncoderConfig) -> None:
        super().__init__()
        self.size = config.hidden_size // config.num_attention_heads
        self.mix = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.close = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in self.mix(x).chunk(3, dim=-1))
        out = scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None].bool())
        return self.close(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class OwnGate(nn.Module):
    def __init__(self, config: OwnEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.neurons, bias=False)
        self.up = nn.Linear(config.hidden_size, config.neurons, bias=False)
        self.down = nn.Linear(config.neurons, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class OwnBlock(nn.Module):
    def __init__(self, config: OwnEncoderConfig) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.attention, self.gated = OwnAttention(config), OwnGate(config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.first(x), mask)
        return x + self.gated(self.second(x))  # type: ignore[no-any-return]


class OwnPreTrainedModel(PreTrainedModel):
    config_class = OwnEncoderConfig
    base_model_prefix = "own"
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OwnAttention):  # as some models of transformers do
            module.mix.weight.data.normal_(std=0.1)


class OwnEncoderModel(OwnPreTrainedModel):
    def __init__(self, config: OwnEncoderConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList([OwnBlock(config) for _ in range(config.num_hidden_layers)])
        self.last = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x, mask=attention_mask)
        return BaseModelOutput(last_hidden_state=self.last(x))


class OwnEncoderForSequenceClassification(OwnPreTrainedModel):
    def __init__(self, config: OwnEncoderConfig) -> None:
        super().__init__(config)
        self.own = OwnEncoderModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        logits = self.classifier(self.own(input_ids, **inputs).last_hidden_state[:, 0])
        loss = None if labels is None else cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def attend(_: PreTrainedModel, block: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    return hidden + block.attention(block.first(hidden), **arguments)  # type: ignore[operator]


def feed(block: nn.Module, hidden: Tensor) -> Tensor:
    return hidden + block.gated(block.second(hidden))  # type: ignore[operator]


OWN = Family(
    layers="blocks",
    paths={
        "Q": "attention.mix",
        "K": "attention.mix",
        "V": "attention.mix",
        "O": "attention.close",
        "W1": "gated.gate",
        "W3": "gated.up",
        "W2": "gated.down",
    },
    cores={"attention": "attention", "ffn": "gated"},
    attend=attend,
    feed=feed,
    norms={"attention": "first", "ffn": "second"},
    num_neurons="neurons",
    tokenwise=("gated", "forward"),
    returns_tuple=False,
    arguments=("mask",),
)

# The family first: transformers may get to know the classes later.
register("own_encoder", OWN)
AutoConfig.register("own_encoder", OwnEncoderConfig)
AutoModel.register(OwnEncoderConfig, OwnEncoderModel)
AutoModelForSequenceClassification.register(OwnEncoderConfig, OwnEncoderForSequenceClassification)
