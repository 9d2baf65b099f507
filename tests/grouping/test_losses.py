"""The loss predicted for group numbers is that of the same shapes in the search."""

from __future__ import annotations

import pytest
from helpers.tiny import batches, classifier

from pgb_lightning import PruningConfig
from pgb_lightning.calibration.collect import calibrate
from pgb_lightning.calibration.importance import encoder_importances
from pgb_lightning.config import Permutation
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.grouping.losses import predict_losses
from pgb_lightning.search.candidates import list_candidates
from pgb_lightning.shapes import Dropped, Groups


@pytest.mark.parametrize("permutation", ["greedy", "balanced", "compensated"])
def test_predictions_agree_with_those_of_the_search(permutation: Permutation) -> None:
    model = classifier(layers=2)
    encoder = find_encoder(model)
    statistics = calibrate(encoder, batches(6), lambda batch: model(**batch).loss, moments=True)
    config = PruningConfig(search="groups", permutation=permutation, max_groups=3)
    dense = dict.fromkeys(((layer, kind) for layer in range(2) for kind in encoder.matrices), 1)
    choices, expected = [dense], [0.0]
    for candidate in [each for options in list_candidates(encoder, statistics, config) for each in options]:
        numbers = {(matrix.layer, matrix.kind): matrix.num_groups for matrix in candidate.matrices}
        shared = permutation == "compensated" and candidate.sublayer == "ffn" and len(set(numbers.values())) == 1
        whole = all(
            matrix.kept_parameters * max(matrix.num_groups, 1) == matrix.total_parameters
            for matrix in candidate.matrices
            if matrix.num_groups
        )
        if isinstance(candidate.shape, Dropped) or (isinstance(candidate.shape, Groups) and whole and not shared):
            choices.append(dense | numbers)
            expected.append(candidate.loss)
    assert len(choices) > 20
    found = predict_losses(encoder, statistics, config, encoder_importances(encoder, statistics.fisher), choices)
    assert found == pytest.approx(expected, rel=1e-6)


def test_statistics_without_moments_raise() -> None:
    model = classifier(layers=1)
    encoder = find_encoder(model)
    statistics = calibrate(encoder, batches(1), lambda batch: model(**batch).loss)
    importances = encoder_importances(encoder, statistics.fisher)
    with pytest.raises(ValueError, match=r"importance_threshold='auto' .*moments=True"):
        predict_losses(
            encoder, statistics, PruningConfig(search="groups"), importances, [dict.fromkeys(importances, 1)]
        )
