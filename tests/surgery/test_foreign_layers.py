"""Layers that another library has replaced or masked are refused by name, also if they hold several matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_logits, tiny_model
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from pgb_lightning import PruningConfig
from pgb_lightning import prune as prune_model
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import Sublayer
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import check_prunable, is_pruned

PLACES = [("bert", "W2"), ("modernbert", "K"), ("modernbert", "W3"), ("modernbert", "O")]


class Adapter(nn.Module):
    """A layer with low-rank weights beside its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.low = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Add both outputs."""
        return self.base_layer(x) + self.low(x)  # type: ignore[no-any-return]


def place(encoder: Encoder, kind: str) -> tuple[nn.Module, str, nn.Linear]:
    """Return the parent, name and layer of a matrix of layer 1."""
    parent, _, name = encoder.family.paths[kind].rpartition(".")
    owner = encoder.layers[1].get_submodule(parent)
    return owner, name, getattr(owner, name)


@pytest.mark.parametrize(("model_type", "kind"), PLACES)
def test_an_adapter_is_refused(model_type: str, kind: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    owner, name, linear = place(encoder, kind)
    setattr(owner, name, Adapter(linear))
    first = encoder.family.parts(kind)[0]
    with pytest.raises(ValueError, match=rf"Layer 1 {first} .*Adapter.*Merge adapters"):
        prune_model(model, tiny_batches(1), PruningConfig())
    assert not encoder.is_dropped(1, "ffn")


@pytest.mark.parametrize(("model_type", "kind"), PLACES)
def test_masked_and_normalized_weights_are_refused(model_type: str, kind: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    _, _, linear = place(encoder, kind)
    first = encoder.family.parts(kind)[0]
    prune.l1_unstructured(linear, "weight", amount=0.5)
    with pytest.raises(ValueError, match=rf"Layer 1 {first} .*weight in a hook"):
        check_prunable(encoder)
    prune.remove(linear, "weight")
    check_prunable(encoder)
    parametrizations.weight_norm(linear)
    with pytest.raises(ValueError, match=rf"Layer 1 {first} .*plain nn\.Linear"):
        check_prunable(encoder)


class Quantized(Tensor):
    """A weight of eight bits, as a tensor subclass that is only implemented for linear layers."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> Quantized:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            return functional.linear(args[0], args[1].codes.float() / 100, *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(f"{func} of {cls.__name__}")


@pytest.mark.parametrize(("model_type", "kind"), PLACES)
def test_quantized_weights_are_refused(model_type: str, kind: str) -> None:
    model = tiny_model(model_type)
    encoder = find_encoder(model)
    _, _, linear = place(encoder, kind)
    codes = (100 * linear.weight).round().to(torch.int8)
    linear.weight = nn.Parameter(Quantized(codes), requires_grad=False)
    assert tiny_logits(model).isfinite().all()
    assert not is_pruned(encoder)
    first = encoder.family.parts(kind)[0]
    with pytest.raises(ValueError, match=rf"Layer 1 {first} .*Quantized.*Undo"):
        prune_model(model, tiny_batches(1))


@pytest.mark.parametrize("of", ["module", "parameter"])
@pytest.mark.parametrize(("model_type", "sublayer"), [("modernbert", "ffn"), ("esm", "attention")])
def test_pre_norms_that_layers_share_are_refused(model_type: str, sublayer: Sublayer, of: str) -> None:
    """Dropping one of the sublayers would remove the norm of the other, or freeze it."""
    model = tiny_model(model_type, num_hidden_layers=3)
    encoder = find_encoder(model)
    path = encoder.family.norms[sublayer]
    norm, other = (encoder.layers[number].get_submodule(path) for number in (1, 2))
    if of == "module":
        encoder.layers[2].set_submodule(path, norm)
    else:
        other.register_parameter("weight", norm.get_parameter("weight"))
    with pytest.raises(ValueError, match=rf"Layer 2 {path} .*shares parameters with layer 1.*copy\.deepcopy"):
        prune_model(model, tiny_batches(1))
    encoder.layers[2].set_submodule(path, copy.deepcopy(norm))
    check_prunable(encoder)
