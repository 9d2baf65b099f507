"""A family that does not say all that depends on the heads is refused when heads are removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.families import tiny_batches, tiny_model

from pgb_lightning.benchmark.models import narrow_plan
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.model_loss import model_loss
from pgb_lightning.compensation.fit import compensate
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import matches


def narrowed(name: str, **changes: Any) -> Any:
    """Keep half of the heads and neurons of a tiny model, with a family in which something is different."""
    model = tiny_model(name).eval()
    found = find_encoder(model)
    encoder = replace(found, family=replace(found.family, **changes))
    plan = narrow_plan(found, 0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    statistics = calibrate(found, tiny_batches(2), model_loss(model))
    try:
        compensate(encoder, plan, statistics.inputs, ridge=0.01)
    except ValueError:
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        raise
    return found, plan


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deberta-v2", {"head_counts": ()}, r"Layer 0.*differ by.*'deberta-v2'.*head_counts"),
        ("deberta", {"head_counts": ()}, r"Layer 0.*'deberta'.*head_counts"),
        ("deberta", {"followers": ()}, r"Layer 0.*does not run.*'deberta'.*followers"),
        ("roformer", {"head_counts": (), "head_widths": ()}, r"Layer 0.*'roformer'.*head_widths"),
    ],
)
def test_an_incomplete_family_is_refused_and_nothing_is_changed(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        narrowed(name, **changes)


@pytest.mark.parametrize("name", ["bert", "mpnet", "deberta-v2", "deberta", "eurobert", "modernbert"])
def test_complete_families_are_accepted(name: str) -> None:
    encoder, plan = narrowed(name)
    assert matches(encoder, plan)
