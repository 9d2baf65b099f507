"""A family that runs layers differently from the model is refused on the first calibration batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_model
from torch import Tensor

from pgb_lightning import PruningConfig, prune
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.encoders.family import Family


def _without_norm(layer: Any, hidden: Tensor) -> Tensor:
    return hidden + layer.output.dense(layer.intermediate(hidden))  # type: ignore[no-any-return]


def _no_attention(_: Any, __: Any, hidden: Tensor, ___: Any) -> Tensor:
    return hidden


def _wrong_width(layer: Any, hidden: Tensor) -> Tensor:
    return layer.intermediate(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"arguments": ()}, r"'bert'.*differ by"),
        ("roberta-prelayernorm", {"arguments": ()}, r"'roberta-prelayernorm'.*differ by"),
        ("bert", {"feed": _without_norm}, r"Layer 0.*'bert'.*differ by"),
        ("modernbert", {"attend": _no_attention}, r"Layer 0.*'modernbert'.*differ by"),
        ("esm", {"arguments": ("attention_mask",)}, r"'esm'"),
        ("deberta-v2 with a convolution", {"between": None}, r"Layer 1.*'deberta-v2'.*differ by"),
        ("bert", {"feed": _wrong_width}, r"Layer 0.*cannot be run.*'bert'"),
        ("albert", {"order": lambda _: [0, 1]}, r"order \[0, 1\].*'albert'"),
    ],
)
def test_a_family_that_runs_layers_differently_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any], message: str
) -> None:
    model = tiny_model(name)
    dense = copy.deepcopy(model.state_dict())
    monkeypatch.setitem(FAMILIES, model.config.model_type, _changed(FAMILIES[model.config.model_type], changes))
    with pytest.raises(ValueError, match=message):
        prune(model, tiny_batches(2), PruningConfig(pruning_ratio=0.5))
    torch.testing.assert_close(model.state_dict(), dense, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bert", "nomic_bert"])
def test_a_hook_that_changes_what_a_layer_returns_is_refused(name: str) -> None:
    model = tiny_model(name)
    model.base_model.get_submodule(FAMILIES[name].layers)[1].register_forward_hook(_double)
    with pytest.raises(ValueError, match=r"Layer 1.*hooks"):
        prune(model, tiny_batches(2), PruningConfig(pruning_ratio=0.5))


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_compared_with_their_rounding(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name).to(dtype)
    prune(model, tiny_batches(2), PruningConfig(pruning_ratio=0.3))


def _changed(family: Family, changes: dict[str, Any]) -> Family:
    return replace(family, **changes)


def _double(_: Any, __: Any, output: Any) -> Any:
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output
