"""Dropout with fewer random numbers: its distribution, its gradient, what it draws, and where it does not apply."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pgb_lightning.layers import Dropout16, use_default_dropout, use_fast_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_entries_are_dropped_with_the_probability_and_the_mean_is_kept(p: float) -> None:
    torch.manual_seed(0)
    output = Dropout16(p)(torch.ones(1000, 1000))
    dropped = output == 0
    deviation = (p * (1 - p) / 1e6) ** 0.5
    assert abs(float(dropped.double().mean()) - p) < 5 * deviation
    assert float(output.double().mean()) == pytest.approx(1, abs=5 * deviation / (1 - p))
    assert len(output.unique()) == 2
    # Four neighbours share a draw of the generator; they are independent all the same.
    both = (dropped[:, 0::4] & dropped[:, 1::4]).double().mean()
    assert float(both) == pytest.approx(p * p, abs=0.005)


def test_the_gradient_passes_the_kept_entries_only() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)  # 105 entries, not divisible by four
    output = Dropout16(0.5)(x)
    output.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), output.detach())
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


def test_a_quarter_of_the_random_numbers_is_drawn() -> None:
    x = torch.randn(64, 32)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        Dropout16(0.1)(x)
    drawn = [event.input_shapes[0] for event in recorded.events() or () if event.name == "aten::random_"]
    assert drawn == [[64 * 32 // 4]]
    assert not [event for event in recorded.events() or () if event.name == "aten::bernoulli_"]


def test_the_seed_decides() -> None:
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(Dropout16(0.5)(torch.ones(100)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_data_type_is_kept(dtype: torch.dtype) -> None:
    assert Dropout16(0.1)(torch.ones(10, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (1.0, True), (0.5, False)])
def test_nothing_is_drawn_if_nothing_is_random(p: float, training: bool) -> None:
    state = torch.get_rng_state()
    x = torch.randn(10)
    torch.set_rng_state(state)
    output = Dropout16(p).train(training)(x)
    assert torch.equal(output, torch.zeros(10) if p == 1 else x)


def test_transforms_get_the_dropout_of_torch() -> None:
    x = torch.ones(4, 100)
    outputs = []
    for layer in (nn.Dropout(0.5), Dropout16(0.5)):
        torch.manual_seed(0)
        outputs.append(torch.func.vmap(layer, randomness="different")(x))
    assert torch.equal(*outputs)


def test_layers_of_a_model_change_in_place_and_back() -> None:
    shared = nn.Dropout(0.1)
    alpha = nn.AlphaDropout(0.1)
    model = nn.Sequential(shared, nn.Linear(2, 2), shared, alpha, nn.Sequential(nn.Dropout(0.2)))
    changed = use_fast_dropout(model)
    assert [type(layer) for layer in changed] == [Dropout16, Dropout16]
    assert type(model[0]) is Dropout16
    assert model[0] is model[2] is shared
    assert type(alpha) is nn.AlphaDropout
    use_default_dropout(changed)
    assert [type(layer) for layer in changed] == [nn.Dropout, nn.Dropout]
