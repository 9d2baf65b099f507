"""A plain transformers model that computes what a pruned one computes."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning._compat import forget_output_hooks
from pgb_lightning.encoders.base import MATRICES, Encoder
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.finish import undo_finish
from pgb_lightning.surgery.record import dense_encoder

Model = TypeVar("Model", bound=PreTrainedModel)


@torch.no_grad()
def dense_twin(model: Model) -> Model:
    """Return the plain transformers model that computes what a pruned model computes.

    It is a copy of the model with new, dense layers in its encoder; everything outside them is as it is. Every block
    goes back into a full matrix with zeros elsewhere (Ŵ*). A dropped sublayer has zero weights, and its constant in the
    closing bias. Inside a sublayer, neurons and heads keep their folded order. The twin is as slow as the original
    dense model, but does not need this package. Hooks registered inside the layers are not copied.

    Args:
        model: A transformers model that is, or wraps, a pruned encoder.

    Returns:
        A new model of the same class (for an exported model, of its transformers class) with equal outputs in eval
        mode.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> dense_twin(BertModel(tiny, add_pooling_layer=False)).pooler is None
        True
    """
    to_plain: Any = getattr(model, "to_plain", None)  # an exported model is an instance of a subclass
    twin: Model = copy.deepcopy(model) if to_plain is None else to_plain()
    for encoder in find_encoders(twin):
        _make_dense(encoder)
    return twin


def _make_dense(encoder: Encoder) -> None:
    """Replace the layers of an encoder by dense ones, in place."""
    dense, old = dense_encoder(encoder), encoder.layers
    for number, (layer, new) in enumerate(zip(old, dense.layers, strict=True)):
        state = layer.state_dict()
        for kind in MATRICES:
            path = encoder.family.paths[kind]
            state.update(_dense_state(path, encoder.find_matrix(number, kind), new.get_submodule(path), layer))
        new.load_state_dict({name: state[name] for name in new.state_dict()}, assign=True)
        frozen = {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(name not in frozen)
        new.train(layer.training)
    for layer, new in zip(old, dense.layers, strict=True):
        # The object stays the same, under all its names and for compiled wrappers, which keep calling it.
        layer.__class__, layer.__dict__ = new.__class__, vars(new)
    undo_finish(encoder, dense)
    for model in encoder.owners:
        forget_output_hooks(model)


def dense_reference(encoder: Encoder) -> Encoder:
    """Return a dense encoder of the same architecture, device and data type, to be measured.

    Args:
        encoder: The encoder, dense or pruned. It is returned itself if nothing was removed from it.
    """
    if not is_pruned(encoder):
        return encoder
    model = dense_twin(encoder.model)
    model.train(False)
    return find_encoder(model)


def _dense_state(path: str, module: nn.Module | None, target: nn.Module, layer: nn.Module) -> dict[str, Tensor]:
    """Return weight and bias of the dense layer for one matrix; the inner features that are left come first."""
    full = as_matrix(target)
    like = next(layer.parameters())
    weight = like.new_zeros(full.out_features, full.in_features)
    state = {f"{path}.weight": weight}
    if full.bias is not None:
        state[f"{path}.bias"] = like.new_zeros(full.out_features)
    if module is not None:
        pruned = as_matrix(module)
        weight[: pruned.out_features, : pruned.in_features] = pruned.dense_weight()
        if pruned.bias is not None and full.bias is not None:
            state[f"{path}.bias"][: pruned.out_features] = pruned.bias
    return state
