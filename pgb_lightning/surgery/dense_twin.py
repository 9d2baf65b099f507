"""A plain transformers model that computes what a pruned one computes."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import MATRICES, Encoder
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.layers.matrix import as_matrix

Model = TypeVar("Model", bound=PreTrainedModel)


@torch.no_grad()
def dense_twin(model: Model) -> Model:
    """Return the plain transformers model that computes what a pruned model computes.

    Every block goes back into a full matrix with zeros elsewhere (Ŵ*). A dropped sublayer has zero weights, and its
    constant in the closing bias. Inside a sublayer, neurons and heads keep their folded order. The twin is as slow as
    the original dense model, but does not need this package.

    Args:
        model: A transformers model that is, or wraps, a pruned encoder.

    Returns:
        A new model of the same class (for an exported model, of its transformers class) with equal outputs in eval
        mode.
    """
    twin = make_dense_model(model)
    twin.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    state = model.state_dict()
    for encoder in find_encoders(model):
        for layer in range(len(encoder.layers)):
            for kind in MATRICES:
                state.update(_dense_state(encoder, layer, kind, twin.get_submodule(encoder.path(layer, kind))))
    twin.load_state_dict({name: state[name] for name in twin.state_dict()})
    twin.train(model.training)
    return twin


def make_dense_model(model: Model) -> Model:
    """Return a randomly initialized dense model of a model's transformers class."""
    exported = getattr(model, "make_dense_model", None)  # an exported model is an instance of a subclass
    dense: Model = type(model)(copy.deepcopy(model.config)) if exported is None else exported()
    return dense


def _dense_state(encoder: Encoder, layer: int, kind: str, target: torch.nn.Module) -> dict[str, Tensor]:
    """Return weight and bias of the dense layer for one matrix; the inner features that are left come first."""
    path, full = encoder.path(layer, kind), as_matrix(target)
    weight = torch.zeros_like(full.dense_weight())
    state = {f"{path}.weight": weight}
    if full.bias is not None:
        state[f"{path}.bias"] = torch.zeros_like(full.bias)
    module = encoder.find_matrix(layer, kind)
    if module is not None:
        pruned = as_matrix(module)
        weight[: pruned.out_features, : pruned.in_features] = pruned.dense_weight()
        if pruned.bias is not None and full.bias is not None:
            state[f"{path}.bias"][: pruned.out_features] = pruned.bias
    return state
