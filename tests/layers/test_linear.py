"""GroupedLinear compared with the dense matrix that it represents."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pgb_lightning import ConstantLinear, GroupedLinear
from pgb_lightning.layers.dropped import DroppedCore


def shuffled(layer: GroupedLinear, seed: int = 0) -> GroupedLinear:
    """Give a layer's blocks random, disjoint inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    for index, size in ((layer.input_index, layer.in_features), (layer.output_index, layer.out_features)):
        index.copy_(torch.randperm(size, generator=generator)[: index.numel()].view_as(index))
    return layer


def dense_twin(layer: GroupedLinear) -> nn.Linear:
    """Return the dense layer with the same blocks and zeros elsewhere."""
    twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.weight.dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.dense_weight())
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 5),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    spare=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    bias=st.booleans(),
    leading=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 99),
)
def test_forward_and_gradients_equal_the_dense_twin(
    groups: int, block: tuple[int, int], spare: tuple[int, int], bias: bool, leading: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    rows, columns = groups * block[0] + spare[0], groups * block[1] + spare[1]
    layer = shuffled(GroupedLinear(rows, columns, groups, *block, bias=bias, dtype=torch.float64), seed)
    twin = dense_twin(layer)
    x = torch.randn(*leading, rows, dtype=torch.float64, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    upstream = torch.randn(*leading, columns, dtype=torch.float64)

    output, expected = layer(x), twin(x_twin)
    output.backward(upstream)
    expected.backward(upstream)

    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=0, atol=1e-10)
    inside = twin.weight.grad.T[layer.input_index.long().unsqueeze(2), layer.output_index.long().unsqueeze(1)]
    torch.testing.assert_close(layer.weight.grad, inside, rtol=0, atol=1e-10)
    if bias:
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("partial", [False, True])
def test_gradcheck(partial: bool) -> None:
    torch.manual_seed(0)
    layer = shuffled(GroupedLinear(6, 9, 3, 1 if partial else 2, 2 if partial else 3, dtype=torch.float64))
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))


# ---- the indices can be set in any way ------------------------------------------------------------------------


def set_in_place(layer: GroupedLinear, other: GroupedLinear) -> None:
    with torch.no_grad():
        for own, new in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
            own.copy_(new)


def set_attributes(layer: GroupedLinear, other: GroupedLinear) -> None:
    for name, value in other.state_dict(keep_vars=True).items():
        setattr(layer, name, value)


def set_data(layer: GroupedLinear, other: GroupedLinear) -> None:
    for own, new in zip(layer.state_dict(keep_vars=True).values(), other.state_dict().values(), strict=True):
        own.data = new.clone()


def swap_tensors(layer: GroupedLinear, other: GroupedLinear) -> None:
    for own, new in zip(
        layer.state_dict(keep_vars=True).values(), copy.deepcopy(other).state_dict(keep_vars=True).values(), strict=True
    ):
        torch.utils.swap_tensors(own, new)


SETTERS: dict[str, Callable[[GroupedLinear, GroupedLinear], object]] = {
    "load_state_dict": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "load_state_dict, assign": lambda layer, other: layer.load_state_dict(other.state_dict(), assign=True),
    "in place": set_in_place,
    "attributes": set_attributes,
    "data": set_data,
    "swap_tensors": swap_tensors,
}
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def permitted_by_torch(how: str, built_in: str, set_in: str) -> bool:
    if how == "swap_tensors":  # not for inference tensors
        return "inference_mode" not in (built_in, set_in)
    if how == "data":  # would mix inference tensors with normal data, which torch does not support
        return "inference_mode" not in (built_in, set_in)
    # Inference tensors are not written to outside of inference mode.
    writes = how in ("load_state_dict", "in place")
    return not (writes and built_in == "inference_mode" and set_in != "inference_mode")


CASES = [
    (how, built_in, set_in)
    for how in SETTERS
    for built_in in MODES
    for set_in in MODES
    if permitted_by_torch(how, built_in, set_in)
]


@pytest.mark.parametrize(("how", "built_in", "set_in"), CASES)
@pytest.mark.parametrize("in_order", [False, True])
def test_outputs_follow_the_indices_however_they_are_set(how: str, built_in: str, set_in: str, in_order: bool) -> None:
    """A layer that has run and is then given other blocks computes with those."""
    other = GroupedLinear(12, 8, 2, 5, 4)
    other = other if in_order else shuffled(other, seed=1)
    x = torch.randn(3, 12)
    with MODES[built_in]():
        layer = shuffled(GroupedLinear(12, 8, 2, 5, 4))
        layer(x)
    with MODES[set_in]():
        SETTERS[how](layer, other)
    has_inference_tensors = any(value.is_inference() for value in layer.state_dict(keep_vars=True).values())
    for mode in ("inference_mode",) if has_inference_tensors else MODES:
        with MODES[mode]():
            assert torch.equal(layer(x), other(x))
            torch.testing.assert_close(layer(x), x @ other.dense_weight().T + other.bias)


def test_functional_call_uses_the_indices_it_is_given() -> None:
    layer, other = shuffled(GroupedLinear(12, 8, 2)), shuffled(GroupedLinear(12, 8, 2), seed=1)
    x = torch.randn(3, 12)
    layer(x)
    assert torch.equal(torch.func.functional_call(layer, other.state_dict(), (x,)), other(x))
    torch.testing.assert_close(layer(x), dense_twin(layer)(x))


def test_copies_moves_and_meta_tensors_keep_the_indices(tmp_path: Path) -> None:
    layer, x = shuffled(GroupedLinear(12, 8, 2)), torch.randn(3, 12)
    layer(x)
    torch.save(layer, tmp_path / "layer.pt")
    meta = GroupedLinear(12, 8, 2, device="meta")
    meta.to_empty(device="cpu").load_state_dict(layer.state_dict())
    copies = (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(tmp_path / "layer.pt", weights_only=False),
        copy.deepcopy(layer).double().float(),
        meta,
    )
    assert all(torch.equal(other(x), layer(x)) for other in copies)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("size", [4, 3])
def test_traced_and_exported_layers_take_any_number_of_tokens(in_order: bool, size: int) -> None:
    layer = GroupedLinear(8, 8, 2, size, size).eval()
    layer = layer if in_order else shuffled(layer)
    x = torch.randn(7, 8)
    traced = torch.jit.trace(layer, (torch.randn(5, 8),))
    torch.testing.assert_close(traced(x), layer(x))
    tokens = torch.export.Dim("tokens", min=2, max=64)
    exported = torch.export.export(layer, (torch.randn(5, 8),), dynamic_shapes=({0: tokens},)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_another_default_device_and_fake_tensors_do_not_matter() -> None:
    layer, x = shuffled(GroupedLinear(12, 8, 2)).eval(), torch.randn(3, 12)
    expected = layer(x)
    with torch.device("meta"):
        assert torch.equal(layer(x), expected)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(x).shape == expected.shape


def test_training_can_follow_an_evaluation_in_inference_mode() -> None:
    layer = shuffled(GroupedLinear(12, 12, 2, 5, 5))
    x = torch.randn(3, 12, requires_grad=True)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert x.grad is not None


# ---- size, data types, representation -------------------------------------------------------------------------


def test_disk_and_memory_hold_the_blocks_only() -> None:
    layer = GroupedLinear(768, 3072, 4)
    state = layer.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "weight": (4, 192, 768),
        "bias": (3072,),
        "input_index": (4, 192),
        "output_index": (4, 768),
    }
    assert sum(p.numel() for p in layer.parameters()) == 768 * 3072 // 4 + 3072
    indices = sum(state[name].nbytes for name in ("input_index", "output_index"))
    assert indices < 0.01 * state["weight"].nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_a_linear_layer_gives(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = shuffled(GroupedLinear(24, 48, 4))
    twin, constant = dense_twin(layer), ConstantLinear(24, 48)
    x = torch.randn(5, 24)
    with torch.autocast("cpu", dtype=dtype):
        output, expected = layer(x), twin(x)
        assert output.dtype == expected.dtype == constant(x).dtype == dtype
        output.float().sum().backward()
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


def test_half_precision_keeps_integer_indices() -> None:
    layer = shuffled(GroupedLinear(24, 48, 4)).to(torch.bfloat16)
    assert layer.input_index.dtype == torch.int32
    assert layer(torch.randn(2, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_deterministic_initialisation_follows_the_seed_and_fan_in() -> None:
    torch.manual_seed(3)
    first = GroupedLinear(64, 64, 4)
    torch.manual_seed(3)
    second = GroupedLinear(64, 64, 4)
    assert torch.equal(first.weight, second.weight)
    assert first.weight.abs().max() <= 1 / 4  # 16 inputs a block


@pytest.mark.parametrize(("groups", "block"), [(0, (1, 1)), (3, (3, 2)), (2, (4, 5)), (5, (None, None))])
def test_blocks_that_do_not_fit_are_refused(groups: int, block: tuple[int | None, int | None]) -> None:
    with pytest.raises(ValueError, match="num_groups"):
        GroupedLinear(8, 4 if groups == 5 else 8, groups, *block)


def test_constant_linear_is_its_bias_and_trains() -> None:
    layer = ConstantLinear(3, 2)
    nn.init.constant_(layer.bias, 1.5)
    output = layer(torch.randn(4, 5, 3))
    assert torch.equal(output, torch.full((4, 5, 2), 1.5))
    output.sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((2,), 20.0))


def test_a_dropped_core_returns_its_input_or_the_constant() -> None:
    x = torch.randn(2, 3, 4)
    assert DroppedCore(None, None, returns_tuple=False)(x) is x
    output, weights = DroppedCore("out_lin", ConstantLinear(4, 4), returns_tuple=True)(x, attention_mask=None)
    assert weights is None
    assert torch.equal(output, torch.zeros_like(x))


def test_repr_describes_the_blocks() -> None:
    assert "in_features=8, out_features=4, groups=2, block=4x2, bias=True" in repr(GroupedLinear(8, 4, 2))
    assert "in_features=8, out_features=4" in repr(ConstantLinear(8, 4))
