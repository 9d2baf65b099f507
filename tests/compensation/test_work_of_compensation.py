"""What a calibration batch costs in compensation: matrix products, and products in double precision."""

from __future__ import annotations

import pytest
import torch
from helpers.counters import double_products
from helpers.tiny import batches, classifier
from torch.utils.flop_counter import FlopCounterMode

from pgb_lightning.benchmark.models import narrow_plan
from pgb_lightning.calibration.collect import LayerInput, calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.compensation.ridge import largest_of_one_peak
from pgb_lightning.compensation.streams import Stream
from pgb_lightning.config import Ridge
from pgb_lightning.encoders.family import SUBLAYERS
from pgb_lightning.encoders.find import find_encoder


def inputs_of(count: int) -> list[LayerInput]:
    model = classifier(layers=2)
    return calibrate(find_encoder(model), batches(count), model_loss(model)).inputs


def refit(inputs: list[LayerInput], ridge: Ridge = "auto") -> None:
    """Keep half of the heads and neurons."""
    encoder = find_encoder(classifier(layers=2))
    compensate(encoder, narrow_plan(encoder, 0.5), inputs, ridge)


def flops_of_fit(inputs: list[LayerInput]) -> int:
    with FlopCounterMode(display=False) as counter:
        refit(inputs)
    return counter.get_total_flops()


def test_a_batch_runs_through_no_pruned_sublayer_twice() -> None:
    """It takes the dense layers once, the pruned layers once and then up to O and W2, and the moments.

    With both runs of the pruned layers whole, it would be 2.8 passes of the dense layers instead of 2.6.
    """
    inputs = inputs_of(6)
    encoder = find_encoder(classifier(layers=2))
    with FlopCounterMode(display=False) as dense, torch.no_grad():
        for given in inputs[2:]:
            stream = Stream(given, torch.device("cpu"))
            for layer in encoder.layers:
                for name in SUBLAYERS:
                    stream.dense = stream.run(encoder, layer, name, stream.dense)
    assert flops_of_fit(inputs) - flops_of_fit(inputs[:2]) <= 2.7 * dense.get_total_flops()


def test_products_in_double_precision_do_not_depend_on_the_samples() -> None:
    inputs = inputs_of(6)
    with double_products() as few:
        refit(inputs[:2], 0.01)
    with double_products() as many:
        refit(inputs, 0.01)
    assert many == few


def test_a_run_ends_at_the_matrix_whose_input_is_wanted() -> None:
    encoder = find_encoder(classifier(layers=1))
    [layer] = encoder.layers
    [given] = inputs_of(1)
    stream = Stream(given, torch.device("cpu"))
    reached: list[str] = []
    for name, module in layer.named_modules():
        module.register_forward_hook(lambda *_, name=name: reached.append(name))
    with torch.no_grad():
        found = stream.run_until(encoder.matrix(0, "W2"), encoder, layer, "ffn", stream.dense)
        assert found.shape == (*given.hidden.shape[:2], 96)
        assert "intermediate.dense" in reached
        assert not [name for name in reached if name.startswith("output")]
        assert stream.run(encoder, layer, "ffn", stream.dense).shape == given.hidden.shape  # nothing stops it any more
        with pytest.raises(RuntimeError, match="attention"):
            stream.run_until(encoder.matrix(0, "W2"), encoder, layer, "attention", stream.dense)


@pytest.mark.parametrize("peak", range(5))
def test_a_single_peak_is_found_without_trying_all_choices(peak: int) -> None:
    tried: list[int] = []

    def value(choice: int) -> float:
        tried.append(choice)
        return -abs(choice - peak - 0.1)

    assert largest_of_one_peak(range(5), value) == peak
    assert len(tried) <= 4
    assert len(set(tried)) == len(tried)
