"""Windows cover the context, and answer positions are exact."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

from pgb_lightning.datamodules.windows import QUESTION_LENGTH, evaluation_windows, training_windows

WORDS = ["naïve", "Zürich", "façade", "東京", "sea", "shore", "red", "(blue)", "1,000", "co-op", "İstanbul", "😀", "e"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module", params=["wordpiece", "byte-level"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "wordpiece":
        letters = sorted({letter for word in WORDS for letter in word.lower()})
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "sea"]
        return BertTokenizer(vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))})
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([" ".join(WORDS)] * 5, vocab_size=330, special_tokens=SPECIAL, show_progress=False)
    merges = [tuple(merge) for merge in __import__("json").loads(trained._tokenizer.to_str())["model"]["merges"]]
    return RobertaTokenizer(vocab=trained.get_vocab(), merges=merges)


def rows(count: int, seed: int = 0) -> dict[str, list[Any]]:
    rng = random.Random(seed)
    made: dict[str, list[Any]] = {"question": [], "context": [], "answers": []}
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(5, 60))]
        first = rng.randrange(len(words) - 2)
        begin = len(" ".join(words[:first])) + (first > 0)
        text = " ".join(words[first : first + 2])
        empty = number % 5 == 4
        made["question"].append("  what is " + rng.choice(WORDS))
        made["context"].append(" ".join(words))
        made["answers"].append({"text": [] if empty else [text], "answer_start": [] if empty else [begin]})
    return made


def test_positions_map_back_to_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = rows(40)
    numbers = list(range(100, 140))
    trained = training_windows(batch, numbers, tokenizer, max_length=60, stride=20)
    evaluated = evaluation_windows(batch, numbers, tokenizer, max_length=60, stride=20)
    assert trained["input_ids"] == evaluated["input_ids"]
    assert trained["question"] == evaluated["question"]
    hits = dict.fromkeys(numbers, 0)
    for window, number in enumerate(trained["question"]):
        first, last = trained["start_positions"][window], trained["end_positions"][window]
        answers = batch["answers"][number - 100]
        if not answers["text"]:
            assert (first, last, trained["found"][window]) == (0, 0, True)
            continue
        assert trained["found"][window] == (first > 0)
        if not trained["found"][window]:
            continue
        places = evaluated["context_offsets"][window]
        read = batch["context"][number - 100][places[first][0] : places[last][1]]
        assert read == answers["text"][0]
        hits[number] += 1
    assert all(count or not batch["answers"][number - 100]["text"] for number, count in hits.items())
    assert max(hits.values()) > 1  # some answers lie in two windows


def test_an_answer_is_found_in_every_window_that_contains_it(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = rows(40, seed=3)
    trained = training_windows(batch, list(range(40)), tokenizer, max_length=60, stride=20)
    evaluated = evaluation_windows(batch, list(range(40)), tokenizer, max_length=60, stride=20)
    for window, number in enumerate(trained["question"]):
        for begin, text in zip(*(batch["answers"][number][name] for name in ("answer_start", "text")), strict=True):
            inside = [place for place in evaluated["context_offsets"][window] if tuple(place) != (-1, -1)]
            whole = inside[0][0] <= begin and begin + len(text) <= inside[-1][1]
            assert trained["found"][window] == whole


def test_windows_cover_the_context_and_overlap_by_the_stride(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = rows(20, seed=1)
    made = evaluation_windows(batch, list(range(20)), tokenizer, max_length=60, stride=20)
    assert max(map(len, made["input_ids"])) <= 60
    for number in range(20):
        mine = [window for window, question in enumerate(made["question"]) if question == number]
        assert [made["window"][window] for window in mine] == list(range(len(mine)))
        inside = [[tuple(p) for p in made["context_offsets"][window] if tuple(p) != (-1, -1)] for window in mine]
        for left, right in itertools.pairwise(inside):
            assert left[-20:] == right[:20]
        whole = tokenizer(batch["context"][number], add_special_tokens=False, return_offsets_mapping=True)
        covered = [place for window, places in enumerate(inside) for place in places[20 if window else 0 :]]
        assert covered == [tuple(place) for place in whole["offset_mapping"]]


def test_long_questions_are_truncated_and_empty_ones_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = {"question": ["sea " * 500, ""], "context": ["red sea", "red sea"]}
    made = evaluation_windows(batch, [0, 1], tokenizer, max_length=100, stride=8)
    assert made["question"] == [0, 1]
    assert len(made["input_ids"][0]) <= QUESTION_LENGTH + 4 + 8
    assert sum(tuple(place) != (-1, -1) for place in made["context_offsets"][1]) >= 2
