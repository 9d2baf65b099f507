"""The teacher's answers from disk: equal to those of the teacher, whatever the batch, and computed once."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import TINY, tiny_model
from helpers.tiny import VOCABULARY
from torch import Tensor
from transformers import BertConfig, BertForMultipleChoice, BertForQuestionAnswering, BertForTokenClassification

from pgb_lightning.distillation import Teacher, hidden_loss, logits_loss
from pgb_lightning.distillation.teacher_cache import MIN_ROWS, TeacherCache
from pgb_lightning.model_calls import Call, record_calls

TOKENS = torch.randint(5, VOCABULARY, (8, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = (9, 4, 7, 9, 3, 6, 5, 8)


class Setup:
    """A student, its teacher, and a cache that counts the rows that the teacher is given."""

    def __init__(self, model: Any, folder: Path, limit: int = 10**9) -> None:
        self.student = copy.deepcopy(model).eval()
        for parameter in self.student.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        self.teacher = Teacher(model)
        self.computed: list[int] = []
        self.cache = TeacherCache(folder, limit, self.teacher.model, self.compute)

    def compute(self, call: Call) -> Call:
        answer = self.teacher.run(call)
        self.computed.append(len(next(value for value in call.kwargs.values() if isinstance(value, Tensor))))
        return answer

    def call(self, batch: dict[str, Any]) -> Call:
        with record_calls(self.student) as calls:
            self.student(**batch)
        return calls[0]


def rows(numbers: list[int], length: int, side: str = "right", **more: Tensor) -> dict[str, Tensor]:
    """Return a batch of some rows, padded to a length."""
    ids = torch.full((len(numbers), length), 1)
    mask = torch.zeros(len(numbers), length, dtype=torch.long)
    for place, number in enumerate(numbers):
        where = slice(0, LENGTHS[number]) if side == "right" else slice(length - LENGTHS[number], length)
        ids[place, where] = TOKENS[number, : LENGTHS[number]]
        mask[place, where] = 1
    return {"input_ids": ids, "attention_mask": mask, **more}


def assert_same_losses(setup: Setup, call: Call, answer: Call) -> None:
    expected = setup.teacher.run(call)
    for found, wanted in (
        (hidden_loss(call, answer), hidden_loss(call, expected)),
        (logits_loss(call, answer, 2.0), logits_loss(call, expected, 2.0)),
    ):
        torch.testing.assert_close(found, wanted, rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("model_type", TINY)
def test_answers_do_not_depend_on_the_batch(model_type: str, tmp_path: Path) -> None:
    setup = Setup(tiny_model(model_type), tmp_path)
    first = setup.call(rows([0, 1, 2, 3], 9))
    assert_same_losses(setup, first, setup.cache.answer(first))
    setup.computed.clear()
    other = setup.call(rows([3, 5, 1, 6], 13))
    assert_same_losses(setup, other, setup.cache.answer(other))
    assert setup.computed == [2]  # two of the rows are new
    setup.computed.clear()
    setup.cache.store.close()
    later = Setup(setup.teacher.model, tmp_path)
    again = later.call(rows([6, 0, 5], 10))
    assert_same_losses(later, again, later.cache.answer(again))
    assert later.computed == []


@pytest.mark.parametrize("head", [BertForQuestionAnswering, BertForTokenClassification, BertForMultipleChoice])
def test_other_heads(head: Any, tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    num_labels = 3 if head is BertForTokenClassification else 2
    setup = Setup(head(BertConfig(**sizes, intermediate_size=48, num_labels=num_labels)), tmp_path)
    for number, length in enumerate((9, 12)):
        batch = rows([0, 1, 2, 4], length)
        if head is BertForMultipleChoice:
            batch = {name: value.view(2, 2, length) for name, value in batch.items()}
        call = setup.call(batch)
        assert_same_losses(setup, call, setup.cache.answer(call))
        expected = [4] if head is not BertForMultipleChoice else [2] * (number + 1)  # its hidden states are per choice
        assert setup.computed == expected


def test_labels_are_not_part_of_a_row_and_other_arguments_are(tmp_path: Path) -> None:
    setup = Setup(tiny_model("bert"), tmp_path)
    types = {"token_type_ids": torch.zeros(2, 9, dtype=torch.long)}
    for more, computed in (
        ({"labels": torch.tensor([0, 1])}, [2]),
        ({"labels": torch.tensor([1, 1])}, [2]),
        ({}, [2]),
        (types, [2, 2]),
        ({name: 1 - value for name, value in types.items()}, [2, 2, 2]),
    ):
        call = setup.call(rows([0, 1], 9, **more))
        assert_same_losses(setup, call, setup.cache.answer(call))
        assert setup.computed == computed


def test_padding_on_the_left_moves_positions(tmp_path: Path) -> None:
    setup = Setup(tiny_model("bert"), tmp_path)
    for length, side, computed in ((9, "right", [2]), (9, "left", [2, 2]), (11, "left", [2, 2, 2])):
        call = setup.call(rows([1, 2], length, side))
        assert_same_losses(setup, call, setup.cache.answer(call))
        assert setup.computed == computed


def test_rows_without_a_mask_are_known_with_their_padding(tmp_path: Path) -> None:
    setup = Setup(tiny_model("bert"), tmp_path)
    for length, computed in ((9, [2]), (9, [2]), (10, [2, 2])):
        batch = rows([1, 2], length)
        call = setup.call({"input_ids": batch["input_ids"]})
        assert_same_losses(setup, call, setup.cache.answer(call))
        assert setup.computed == computed


def test_scores_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    setup = Setup(tiny_model("bert"), tmp_path)
    setup.teacher.model.classifier.bias.data.fill_(torch.nan)
    call = setup.call(rows([0, 1], 9))
    assert not setup.cache.answer(call).is_valid()
    assert not list(tmp_path.glob("*.rows"))


def test_new_rows_in_later_epochs_end_the_cache(tmp_path: Path) -> None:
    setup = Setup(tiny_model("bert"), tmp_path)
    generator = torch.Generator().manual_seed(0)

    def augmented(count: int) -> None:
        ids = torch.randint(5, VOCABULARY, (count, 9), generator=generator)
        setup.cache.answer(setup.call({"input_ids": ids}))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmented(MIN_ROWS)
        setup.cache.end_epoch()
        augmented(MIN_ROWS - 1)
    with pytest.warns(UserWarning, match=r"256 of 256 rows of epoch 2.*cache=None"):
        augmented(1)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.rows"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmented(8)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.rows")) == size


def test_a_full_cache_computes_the_other_rows_every_time(tmp_path: Path) -> None:
    hidden = 2 * 9 * 48 * 2  # layers, tokens, width, bytes
    setup = Setup(tiny_model("bert"), tmp_path, limit=hidden + 8)
    call = setup.call(rows([0, 3], 9))
    with pytest.warns(UserWarning, match=r"full.*cache_gb.*layers='last'"):
        assert_same_losses(setup, call, setup.cache.answer(call))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_losses(setup, call, setup.cache.answer(call))
    assert setup.computed == [2, 1]
