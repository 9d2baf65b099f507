"""Layers that another library has replaced or masked are refused by name, also if they hold several matrices."""

from __future__ import annotations

import pytest
from helpers.families import tiny_batches, tiny_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pgb_lightning import PruningConfig
from pgb_lightning import prune as prune_model
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import check_prunable

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
