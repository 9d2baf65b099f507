"""Candidates: what they keep, and their predicted loss compared with least squares on the data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier
from torch import Tensor
from transformers import PreTrainedModel

from pgb_lightning import PruningConfig
from pgb_lightning.calibration.collect import Calibration, calibrate
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.search.candidates import Candidate, list_candidates
from pgb_lightning.shapes import Dropped, Groups, Heads, Neurons

CONFIG = PruningConfig(ridge=1e-9)


def statistics_of(model: PreTrainedModel, data: list[dict[str, Tensor]]) -> Calibration:
    return calibrate(find_encoder(model), data, lambda batch: model(**batch).loss, moments=True)


def candidates_of(model: PreTrainedModel, config: PruningConfig = CONFIG) -> list[list[Candidate]]:
    return list_candidates(find_encoder(model), statistics_of(model, batches(6)), config)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_sublayer_has_its_shapes(model_type: str) -> None:
    found = candidates_of(classifier(model_type, layers=2))
    assert [(options[0].layer, options[0].sublayer) for options in found] == [
        (layer, sublayer) for layer in range(2) for sublayer in ("attention", "ffn")
    ]
    for options in found:
        assert options[0].loss == 0
        assert all(matrix.input_index is None for matrix in options[0].matrices)
        shapes = [candidate.shape for candidate in options]
        assert len(set(shapes)) == len(shapes)
        assert Dropped() in shapes
        assert all(candidate.loss >= 0 for candidate in options)
    attention, ffn = ({str(candidate.shape) for candidate in options} for options in found[:2])
    assert {"1 heads", "groups 2, 2, 6, 3", "groups 0, 1, 1, 1", "groups 0, 0, 4, 4"} <= attention
    assert {"48 neurons", "96 neurons in 6 and 2 groups", "48 neurons in 1 and 4 groups"} <= ffn


@pytest.mark.parametrize(("neurons", "step"), [(40, 1), (100, 2), (256, 4), (512, 8)])
def test_every_number_of_neurons_has_widths_and_groups(neurons: int, step: int) -> None:
    """Not only multiples of 48 have: 512, 1,024, 2,048 and 4,096 are those of BERT's other sizes."""
    _, ffn = candidates_of(classifier(layers=1, intermediate_size=neurons))
    shapes = [str(candidate.shape) for candidate in ffn]
    widths = [f"{left} neurons" for left in range(neurons, 0, -step)]
    assert [shape for shape in shapes if shape.endswith("neurons")] == widths
    assert len(widths) >= min(neurons, 48)
    shares = {neurons - round(share * neurons / step) * step for share in (0, 0.5, 0.75)}
    assert {int(shape.split()[0]) for shape in shapes if shape.endswith("groups")} == shares


def test_kept_neurons_and_heads_are_the_same_for_all_matrices_and_ascending() -> None:
    attention, ffn = candidates_of(classifier(layers=1))
    for candidate in ffn:
        if isinstance(candidate.shape, Neurons) and candidate.shape != Neurons(96):
            w1, w2 = candidate.matrices
            assert w1.output_index == w2.input_index == (tuple(sorted(w1.output_index[0])),)
            assert candidate.shape == Neurons(len(w1.output_index[0]))
            assert w1.input_index == w2.output_index == (tuple(range(24)),)
            assert candidate.parameters == 2 * 24 * len(w1.output_index[0])
    [one_head] = [candidate for candidate in attention if candidate.shape == Heads(1)]
    q, k, v, o = one_head.matrices
    assert q.output_index == k.output_index == v.output_index == o.input_index
    assert o.input_index in ((tuple(range(12)),), (tuple(range(12, 24)),))


def test_fewer_neurons_never_predict_less_loss() -> None:
    for options in candidates_of(classifier())[1::2]:
        widths = [c for c in options if isinstance(c.shape, (Neurons, Dropped))]
        assert [c.parameters for c in widths] == sorted((c.parameters for c in widths), reverse=True)
        assert [c.loss for c in widths] == sorted(c.loss for c in widths)


@pytest.mark.parametrize("permutation", ["balanced", "compensated"])
def test_predictions_are_those_of_least_squares_on_real_tokens(permutation: str) -> None:
    """Refit each block on the tokens themselves; weigh what is left by the gradients themselves."""
    model, data = classifier(layers=1), batches(30)
    config = replace(CONFIG, permutation=permutation)
    attention, ffn = list_candidates(find_encoder(model), statistics_of(model, data), config)
    seen, gradients, samples = record(model, data)
    chosen = [
        c
        for c in ffn
        if str(c.shape)
        in (
            "40 neurons",
            "48 neurons in 3 and 2 groups",
            "48 neurons in 3 and 3 groups",
            "96 neurons in 1 and 4 groups",
        )
    ]
    chosen += [c for c in attention if str(c.shape) in ("1 heads", "groups 2, 2, 3, 6", "groups 1, 0, 1, 1")]
    assert len(chosen) == 7
    for candidate in chosen:
        expected = 0.0
        joint = all(matrix.num_groups == 1 for matrix in candidate.matrices)
        for matrix in candidate.matrices:
            x = seen[matrix.kind]
            linear = find_encoder(model).matrix(0, matrix.kind)
            y = x @ linear.weight.detach().T.double()
            left = torch.zeros_like(y)
            if matrix.num_groups == 0:
                left = y - y.mean(0)
            used = [] if matrix.input_index is None else zip(matrix.input_index, matrix.output_index, strict=True)
            for rows, columns in used:
                inputs, wanted = x[:, list(rows)], y[:, list(columns)]
                inputs, wanted = inputs - inputs.mean(0), wanted - wanted.mean(0)
                left[:, list(columns)] = wanted - inputs @ torch.linalg.lstsq(inputs, wanted).solution
            covariance = left.T @ left / len(left)
            g = gradients[matrix.kind]
            outer = g.T @ g / samples
            if matrix.kind == "W2" and not joint:
                # Neurons are weighed by all of the gradients' moment, groups on top by its diagonal.
                neurons = torch.tensor(matrix.input_index).flatten()
                inputs = x[:, neurons] - x[:, neurons].mean(0)
                fit = torch.linalg.lstsq(inputs, y - y.mean(0)).solution
                base = y - y.mean(0) - inputs @ fit
                base_covariance = base.T @ base / len(base)
                expected += float((outer * base_covariance).sum()) / 2
                covariance = covariance - base_covariance
            if not joint or matrix.num_groups == 0:
                outer = outer.diagonal().diag()
            expected += float((outer * covariance).sum()) / 2
        assert candidate.loss == pytest.approx(expected, rel=2e-3), candidate.shape


def test_compensated_groups_are_alike_around_the_neurons_and_lose_less() -> None:
    model, data = classifier(layers=1), batches(30)
    statistics = statistics_of(model, data)
    losses = {}
    for permutation in ("balanced", "compensated"):
        config = replace(CONFIG, permutation=permutation)
        attention, ffn = list_candidates(find_encoder(model), statistics, config)
        losses[permutation] = [
            candidate.loss for candidate in (*attention, *ffn) if isinstance(candidate.shape, Groups)
        ]
    assert sum(losses["compensated"]) < 0.99 * sum(losses["balanced"])
    alike = [c.matrices for c in ffn if c.shape in (Groups((3, 3), 96), Groups((4, 4), 48))]
    assert len(alike) == 2
    assert all(w1.output_index == w2.input_index for w1, w2 in alike)
    [apart] = [c.matrices for c in ffn if c.shape == Groups((4, 2), 48)]
    assert sorted(sum(apart[0].output_index, ())) == sorted(sum(apart[1].input_index, ()))


def record(model: PreTrainedModel, data: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Keep every real token's input to, and gradient at the output of, the matrices of the only layer."""
    linears = {kind: linear for (_, kind), linear in find_encoder(model).linears()}
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    for kind, linear in linears.items():
        linear.register_forward_hook(lambda _, args, output, kind=kind: calls.update({kind: (args[0], output)}))
    seen: dict[str, list[Tensor]] = {kind: [] for kind in linears}
    gradients: dict[str, list[Tensor]] = {kind: [] for kind in linears}
    for batch in data:
        loss = model(**batch).loss
        real = batch["attention_mask"].bool()
        found = torch.autograd.grad(loss, [output for _, output in calls.values()])
        for (kind, (inputs, _)), gradient in zip(calls.items(), found, strict=True):
            seen[kind].append(inputs.detach()[real].double())
            gradients[kind].append(gradient[real].double() * len(real))
    samples = sum(len(batch["labels"]) for batch in data)
    return {k: torch.cat(v) for k, v in seen.items()}, {k: torch.cat(v) for k, v in gradients.items()}, samples
