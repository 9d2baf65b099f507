"""A plain transformers model that computes what a pruned one computes."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import MATRICES, Encoder
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear

Model = TypeVar("Model", bound=PreTrainedModel)


def dense_twin(model: Model) -> Model:
    """Make the plain transformers model that computes what a grouped model computes.

    Every block goes back into a full matrix with zeros elsewhere (Ŵ*); a dropped sublayer has zero weights and its
    constant in the closing bias. Inside a sublayer, neurons and heads stand as they were folded. The twin is as slow
    as the dense model was, but needs nothing of this package.

    Args:
        model: A transformers model that is, or wraps, a grouped encoder.

    Returns:
        A new model of the same class (of an exported model's: its transformers class), with equal outputs in eval
        mode.
    """
    twin = make_dense_model(model)
    twin.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    state = model.state_dict()
    for encoder in find_encoders(model):
        for layer in range(len(encoder.layers)):
            for kind in MATRICES:
                state.update(_dense_state(encoder, layer, kind, twin.get_submodule(encoder.path(layer, kind))))
    wanted = twin.state_dict()
    twin.load_state_dict({name: state[name] for name in wanted})
    twin.train(model.training)
    return twin


def make_dense_model(model: Model) -> Model:
    """Make a dense model of a model's transformers class, with random weights."""
    exported = getattr(
        model, "make_dense_model", None
    )  # an exported model is of a subclass, and knows what it came from
    plain: Model = type(model)(copy.deepcopy(model.config)) if exported is None else exported()
    return plain


def _dense_state(encoder: Encoder, layer: int, kind: str, target: nn.Module) -> dict[str, Tensor]:
    """Return weight and bias of the dense layer that stands for one matrix; neurons and heads left come first."""
    assert isinstance(target, nn.Linear)
    path = encoder.path(layer, kind)
    module = encoder.find_matrix(layer, kind)
    weight = torch.zeros_like(target.weight)
    bias = torch.zeros_like(target.bias)
    if isinstance(module, nn.Linear):
        weight[: module.out_features, : module.in_features] = module.weight
    elif isinstance(module, GroupedLinear):
        weight[: module.out_features, : module.in_features] = module.dense_weight()
    if isinstance(module, (nn.Linear, GroupedLinear, ConstantLinear)) and module.bias is not None:
        bias[: module.out_features] = module.bias
    return {f"{path}.weight": weight, f"{path}.bias": bias}
