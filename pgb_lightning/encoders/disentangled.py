"""The disentangled attention of DeBERTa, whose scores also depend on relative positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.family import AlsoRead

#: Settings on which the latency of attention depends.
TIMED = ("relative_attention", "pos_att_type", "max_relative_positions")

#: The kind of positional scores that a matrix also computes if it is shared with positions (``share_att_key``).
POSITIONAL = {"Q": "p2c", "K": "c2p"}


def attend(model: PreTrainedModel, layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Run attention. Relative positions and their embeddings are computed by the model if they are not given."""
    encoder: Any = model.encoder
    given = dict(arguments)
    if "attention_mask" not in given:
        given["attention_mask"] = torch.ones(1, 1, 1, hidden.shape[1], dtype=torch.bool, device=hidden.device)
    if "rel_embeddings" not in given:
        given |= {"relative_pos": encoder.get_rel_pos(hidden), "rel_embeddings": encoder.get_rel_embedding()}
    return layer.attention(hidden, **given)[0]  # type: ignore[no-any-return, operator]


def feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Run the feed-forward sublayer."""
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return, operator]


def positions_of(kind: str) -> AlsoRead:
    """Return a function for the further inputs of Q or K: the embeddings of relative positions.

    Args:
        kind: A key of :data:`POSITIONAL`.
    """

    def read(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
        encoder, config = cast(Any, model.encoder), model.config
        if not (encoder.relative_attention and getattr(config, "share_att_key", False)):
            return None
        if POSITIONAL[kind] not in (config.pos_att_type or ()):
            return None
        rows = encoder.get_rel_embedding()
        # The query of a token is part of a score with each key of its sentence, and of another one with each key's
        # position if there are both kinds. That of a position is part of one score for each pair of tokens there.
        real = tokens.double()
        pairs = (real / real.sum(1, keepdim=True).clamp_min(1)).T @ real
        positions = encoder.get_rel_pos(tokens.unsqueeze(2))[0] + len(rows) // 2
        index = positions.clamp(0, len(rows) - 1).flatten()
        counts = pairs.new_zeros(len(rows)).index_add_(0, index, pairs.flatten())
        return rows, counts / len({*config.pos_att_type}.intersection(POSITIONAL.values()))

    return read
