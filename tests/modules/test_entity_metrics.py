"""Scores of entities, compared with values counted by hand from the rules of the CoNLL script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pgb_lightning.modules.entity_metrics import EntityMetric, are_entity_tags

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
IDS = {"O": 0, "P": 1, "p": 2, "L": 3, "l": 4, ".": -100}


def ids(*texts: str) -> Tensor:
    """Return ids of texts: capitals begin an entity, small letters go on, and points are not scored."""
    return torch.tensor([[IDS[letter] for letter in text] for text in texts])


def score(predicted: Sequence[str], correct: Sequence[str], names: Sequence[str] = NAMES) -> dict[str, float]:
    metric = EntityMetric(names)
    for one, other in zip(predicted, correct, strict=True):
        metric.update(ids(one), ids(other))
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize(
    ("predicted", "correct", "right", "found", "wanted", "same"),
    [
        (["PpOL"], ["PpOL"], 2, 2, 2, 4 / 4),
        (["POOL"], ["PpOL"], 1, 2, 2, 3 / 4),  # too short, so wrong
        (["PpOP"], ["PpOL"], 1, 2, 2, 3 / 4),  # another type
        (["OOOO"], ["PpOL"], 0, 0, 2, 1 / 4),
        (["PpOO"], ["OOOO"], 0, 1, 0, 2 / 4),
        (["PpPp"], ["Pppp"], 0, 2, 1, 3 / 4),  # two neighbours, not one
        (["OppO"], ["OPpO"], 1, 1, 1, 3 / 4),  # an I- after O begins an entity
        (["Plll"], ["PLll"], 2, 2, 2, 3 / 4),  # and so does one after another type
        (["Pp", "pO"], ["Pp", "OO"], 1, 2, 1, 3 / 4),  # texts do not continue each other
        (["PpLp"], ["P..p"], 1, 1, 1, 2 / 2),  # what is not scored does not count
        (["PLpO"], ["P.pO"], 1, 1, 1, 3 / 3),  # nor does it part an entity: it is a later piece of a word
        (["P"], ["."], 0, 0, 0, 0),
    ],
)
def test_scores(predicted: list[str], correct: list[str], right: int, found: int, wanted: int, same: float) -> None:
    expected = {
        "precision": right / found if found else 0,
        "recall": right / wanted if wanted else 0,
        "f1": 2 * right / (found + wanted) if right else 0,
        "accuracy": same,
    }
    assert score(predicted, correct) == pytest.approx(expected, abs=1e-6)


def test_all_entities_are_counted_together() -> None:
    predicted, correct = ["PPPO", "OOOL"], ["PPPL", "OLOL"]
    # 4 right of 4 found, and 6 wanted. By type, the mean would be F1 (1 + 0.5) / 2.
    expected = {"precision": 1.0, "recall": 4 / 6, "f1": 8 / 10, "accuracy": 6 / 8}
    assert score(predicted, correct) == pytest.approx(expected, abs=1e-6)


def test_nothing_to_score() -> None:
    expected = {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0}
    metric = EntityMetric(NAMES)
    assert metric.compute() == expected
    metric.reset()
    metric.update(ids("OO"), ids("OO"))
    assert metric.compute() == {**expected, "accuracy": 1}


@pytest.mark.parametrize(
    ("names", "predicted", "right", "found"),
    [
        (["O", "B-X", "I-X", "E-X", "S-X"], [1, 2, 3, 4, 4, 0], 3, 3),  # IOBES: the last one has a mark of its own
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 2, 3, 4, 4, 0], 3, 3),  # BILOU
        (["O", "B-X", "M-X", "E-X", "S-X"], [1, 2, 3, 4, 4, 0], 3, 3),  # BMES
        (["[PAD]", "B-a-b", "I-a-b", "B-a", "I-a"], [1, 2, 4, 0, 3, 0], 3, 3),  # types may have hyphens
    ],
)
def test_other_schemes(names: list[str], predicted: list[int], right: int, found: int) -> None:
    metric, tokens = EntityMetric(names), torch.tensor([predicted])
    metric.update(tokens, tokens)
    assert metric.compute()["f1"] == 1
    metric.update(torch.zeros_like(tokens), tokens)
    assert metric.compute()["recall"] == pytest.approx(right / (2 * found))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, True),
        (["B-PER", "I-PER"], True),
        (["I-PER", "O"], True),
        (["NOUN", "VERB", "O"], False),
        (["B", "I", "O"], False),
        (["E-PER", "S-PER"], False),
        (["LABEL_0", "LABEL_1"], False),
        ([], False),
    ],
)
def test_which_names_are_tags(names: list[str], expected: bool) -> None:
    assert are_entity_tags(names) is expected


def gather_from(metrics: Sequence[EntityMetric]) -> Callable[..., list[Tensor]]:
    """Return a function that gathers the states of all processes, which must have the same type and dimensions."""
    states = [torch.cat(metric.tags) if metric.tags else torch.tensor([], dtype=metric.dtype) for metric in metrics]

    def gather(state: Tensor, group: object = None) -> list[Tensor]:
        assert any(torch.equal(state, own) for own in states)
        assert {(own.dtype, own.dim()) for own in states} == {(state.dtype, state.dim())}
        return states

    return gather


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        # Found PER 0-1, LOC 2; PER 0, LOC 1-2, PER 3. Wanted PER 0-2, LOC 2; PER 0, LOC 1-2.
        (
            [[("PpO", "Ppp"), ("OOLO", "OOLO")], [("PLlpO", "PLlO.")]],
            {"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9, "accuracy": 9 / 11},
        ),
        # The second process has no texts.
        (
            [[("PpO", "Ppp"), ("OOLO", "OOLO")], []],
            {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "accuracy": 6 / 7},
        ),
    ],
)
def test_texts_of_two_processes_are_scored_together(
    batches: list[list[tuple[str, str]]], expected: dict[str, float]
) -> None:
    metrics = [EntityMetric(NAMES) for _ in batches]
    for metric, own in zip(metrics, batches, strict=True):
        for predicted, correct in own:  # of different lengths
            metric.update(ids(predicted), ids(correct))
    gather = gather_from(metrics)
    for metric in metrics:
        metric.dist_sync_fn, metric.distributed_available_fn = gather, lambda: True
        assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected, abs=1e-6)
