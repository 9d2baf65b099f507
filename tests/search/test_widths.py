"""``width_multiple``: what is left comes in multiples of it, and what it does not divide is refused."""

from __future__ import annotations

from itertools import chain

import pytest
from helpers.own import OwnModule
from helpers.tiny import batches, classifier
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning import PruningConfig, prune
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.search.widths import has_multiples


def candidates(multiple: int) -> list[Candidate]:
    """Return all candidates of a layer of width 24 with two heads of 12 features and 96 neurons."""
    model = classifier(layers=1)
    encoder = find_encoder(model)
    statistics = calibrate(encoder, batches(6), lambda batch: model(**batch).loss, moments=True)
    return list(chain.from_iterable(list_candidates(encoder, statistics, PruningConfig(width_multiple=multiple))))


def test_candidates_are_those_whose_widths_are_multiples() -> None:
    every = candidates(multiple=1)
    shapes = {str(each.shape) for each in candidates(multiple=8)}
    assert shapes == {str(each.shape) for each in every if all(has_multiples(matrix, 8) for matrix in each.matrices)}
    assert {"2 heads", "96 neurons", "88 neurons", "8 neurons", "96 neurons in 3 and 3 groups", "dropped"} <= shapes
    # A head has 12 features, 90 neurons are no multiple, and halves of 24 columns have 12.
    assert not shapes & {"1 heads", "90 neurons", "96 neurons in 2 and 2 groups"}


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
@pytest.mark.parametrize("ratio", [0.5, 0.88])
def test_all_layers_of_a_pruned_model_have_multiples(model_type: str, ratio: float) -> None:
    model = classifier(model_type, layers=3)
    plan = prune(model, batches(6), PruningConfig(pruning_ratio=ratio, width_multiple=12, tolerance=0.02))
    encoder = find_encoder(model)
    left = [as_matrix(encoder.matrix(each.layer, each.kind)) for each in plan.matrices if each.kept_parameters]
    sizes = {index.shape[-1] for matrix in left for index in matrix.index()}
    assert all(size % 12 == 0 for size in sizes)
    assert not sizes <= {24, 96}


def test_the_prices_of_the_usual_steps_do_not_change() -> None:
    """A multiple that all steps have anyway leaves the plan as it is."""
    plans = []
    for multiple in (1, 2):
        model = classifier(layers=2, intermediate_size=100)  # in steps of 2
        plans.append(prune(model, batches(6), PruningConfig(width_multiple=multiple, max_groups=1)))
    assert plans[0].matrices == plans[1].matrices


def test_a_multiple_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width_multiple=64 .* 24 features of heads of layer 0 .* 8"):
        prune(classifier(), batches(6), PruningConfig(width_multiple=64))
    with pytest.raises(ValueError, match=r"width_multiple=24 .* 100 neurons of layer 0 .* 4"):
        prune(classifier(intermediate_size=100), batches(6), PruningConfig(width_multiple=24))
    with pytest.raises(MisconfigurationException, match="width_multiple=7 "):
        PGBCallback(width_multiple=7).check(OwnModule())


def test_a_multiple_that_an_earlier_pruning_left_odd_is_refused() -> None:
    model = classifier(layers=1)
    prune(model, batches(6), PruningConfig(pruning_ratio=0.3, width_multiple=6, max_groups=1))
    [neurons] = {linear.in_features for (_, kind), linear in find_encoder(model).linears() if kind == "W2"}
    assert neurons % 12
    with pytest.raises(ValueError, match=f"width_multiple=12 .* {neurons} neurons of layer 0 .* 6"):
        prune(model, batches(6), PruningConfig(pruning_ratio=0.6, width_multiple=12))


def test_settings_without_effect_or_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width_multiple=8 .*search='groups'"):
        PruningConfig.from_preset("paper", width_multiple=8)
    with pytest.raises(ValueError, match="width_multiple=0"):
        PruningConfig(width_multiple=0)
    with pytest.raises(MisconfigurationException, match="width_multiple='wide'"):
        PGBCallback(width_multiple="wide")  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="width_multiple=8"):
        PGBCallback(plan="plan.json", width_multiple=8)
