"""Predicted losses: zero where nothing is removed, and never less where more is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from helpers.families import TINY

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.search.candidates import Candidate
from pgb_lightning.shapes import Dropped, Groups, Heads, Neurons


@pytest.mark.parametrize("model_type", TINY)
def test_losses_grow_with_what_is_removed(model_type: str, calibrated: Any) -> None:
    case = calibrated(model_type)
    encoder, candidates = find_encoder(case.model), case.candidates
    heads = encoder.inner_size("attention") // encoder.head_group
    assert len(candidates) == 2 * len(encoder.layers)
    for options in candidates:
        untouched, *others = options
        sublayer = untouched.sublayer
        assert untouched.loss == 0
        assert untouched.parameters == sum(matrix.total_parameters for matrix in untouched.matrices)
        assert all(matrix.input_index is None for matrix in untouched.matrices)
        assert min(candidate.loss for candidate in others) >= 0
        assert all(tuple(m.kind for m in one.matrices) == encoder.sublayers[sublayer] for one in options)
        [dropped] = [one for one in others if isinstance(one.shape, Dropped)]
        assert dropped.parameters == 0
        assert dropped.loss > 0
        ordered = [one for one in options if isinstance(one.shape, (Heads, Neurons))] + [dropped]
        assert len(ordered) == 1 + (heads if sublayer == "attention" else encoder.inner_size("ffn") // 2)
        for more, less in pairwise(ordered):
            assert less.parameters < more.parameters
            assert less.loss >= more.loss * (1 - 1e-6)
        grouped = [one for one in others if isinstance(one.shape, Groups)]
        assert grouped
        assert all(is_smaller(one, untouched) for one in grouped)


def is_smaller(candidate: Candidate, untouched: Candidate) -> bool:
    return 0 < candidate.parameters < untouched.parameters and candidate.loss > 0
