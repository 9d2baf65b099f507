"""Convert a pruned model to a plain transformers model with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning._compat import forget_output_hooks
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.finish import undo_finish
from pgb_lightning.surgery.heads import kept_features
from pgb_lightning.surgery.made_biases import switch_on_biases
from pgb_lightning.surgery.new_layers import keep_training_state, like_tensor
from pgb_lightning.surgery.record import dense_encoder

Model = TypeVar("Model", bound=PreTrainedModel)


@torch.no_grad()
def dense_twin(model: Model) -> Model:
    """Return a plain transformers model that computes the same outputs as a pruned model.

    It is a copy of the model with new, dense layers in its encoder; everything else is unchanged. Every block is placed
    in a full matrix with zeros elsewhere (Ŵ*). A dropped sublayer has zero weights, and its constant as the closing
    bias. If the model has no biases there, the configuration of the twin enables them, and all others are zero. Within
    a sublayer, neurons and heads keep their folded order, unless heads are not interchangeable, as in MPNet. The twin
    is as slow as the original dense model, but does not need this package. Hooks registered inside the layers are not
    copied.

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
    switch_on_biases(encoder)
    dense, old = dense_encoder(encoder), encoder.layers
    for number, (layer, new) in enumerate(zip(old, dense.layers, strict=True)):
        old_state = layer.state_dict()
        state = {
            name: _padded(old_state.get(name), value, _like(layer, name)) for name, value in new.state_dict().items()
        }
        new.load_state_dict(state, assign=True)
        for kind in encoder.matrices:
            target = dense.matrix(number, kind)
            assert isinstance(target, nn.Linear)
            inner = kept_features(encoder, number) if kind in encoder.sublayers["attention"] else None
            _fill(target, encoder.find_matrix(number, kind), inner, is_closing=kind == SUBLAYERS["attention"][-1])
            dense.store(number, kind, target)
        keep_training_state(layer, new)
        for module in new.modules():
            if getattr(module, "config", None) is dense.model.config:
                # set_attn_implementation changes the model's own configuration.
                vars(module)["config"] = encoder.model.config
    for layer, new in zip(old, dense.layers, strict=True):
        # Keep the same object, since it may have several names, and compiled wrappers call it.
        layer.__class__, layer.__dict__ = new.__class__, vars(new)
    undo_finish(encoder, dense)
    for model in encoder.owners:
        forget_output_hooks(model)


def dense_reference(encoder: Encoder) -> Encoder:
    """Return a dense encoder of the same architecture, device and data type, for measurements.

    Args:
        encoder: The encoder, dense or pruned. If nothing was removed from it, it is returned itself.
    """
    if not is_pruned(encoder):
        return encoder
    model = dense_twin(encoder.model)
    model.train(False)
    return find_encoder(model)


def _like(layer: nn.Module, name: str) -> Tensor:
    """Return a tensor with the device and data type of a pruned layer's module, given an entry of the dense layer."""
    owner, path = layer, name.rpartition(".")[0]
    while path:
        with suppress(AttributeError, StopIteration):  # removed, or without tensors
            return like_tensor(owner.get_submodule(path))
        path = path.rpartition(".")[0]
    return like_tensor(owner)


def _padded(value: Tensor | None, like: Tensor, device_of: Tensor) -> Tensor:
    """Return an entry of a dense layer's state dict from a pruned one's; features that were removed are zero.

    Args:
        value: The pruned layer's entry, if it has one.
        like: The entry of a dense layer, for its shape.
        device_of: A parameter, for the device and the data type.
    """
    if value is not None and value.shape == like.shape:
        return value.clone()
    dtype = device_of.dtype if like.is_floating_point() else like.dtype
    full = torch.zeros(like.shape, device=device_of.device, dtype=dtype)
    if value is not None and value.dim() == like.dim():
        full[tuple(map(slice, value.shape))] = value
    return full


def _fill(target: nn.Linear, module: nn.Module | None, inner: Sequence[int] | None, is_closing: bool) -> None:
    """Set weight and bias of the dense layer for one matrix.

    Args:
        target: The dense layer.
        module: The pruned one; ``None`` if it was removed with its sublayer.
        inner: The positions of the kept inner features; by default they come first.
        is_closing: Whether the inner features are the inputs of the matrix, and not the outputs.
    """
    target.weight.zero_()
    if target.bias is not None:
        target.bias.zero_()
    if module is None:
        return
    pruned = as_matrix(module)
    device = target.weight.device
    rows, columns = (torch.arange(size, device=device) for size in (pruned.out_features, pruned.in_features))
    if inner is not None and is_closing:
        columns = torch.tensor(inner, device=device)
    elif inner is not None:
        rows = torch.tensor(inner, device=device)
    target.weight[rows.unsqueeze(1), columns] = pruned.dense_weight()
    if pruned.bias is not None and target.bias is not None:
        target.bias[rows] = pruned.bias
