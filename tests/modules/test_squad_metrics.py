"""The SQuAD scores, compared with values computed by hand from the official rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pgb_lightning.modules.squad_metrics import (
    Answer,
    SquadMetric,
    best_answers,
    exact_match,
    f1,
    normalize,
    squad_scores,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Cat", "cat"),
        ("a an the", ""),
        ("theatre and another", "theatre and another"),  # articles are words, not letters
        ("  two   spaces\tand\na line ", "two spaces and line"),
        ("U.S.A.", "usa"),  # punctuation is removed first, so "A" is no article
        ("the-cat", "thecat"),
        ("$1,000.50", "100050"),
        ("\u201cquoted\u201d", "\u201cquoted\u201d"),  # only ASCII punctuation is removed
        ("Stra\u00dfe", "stra\u00dfe"),
        ("!?", ""),
        ("", ""),
    ],
)
def test_normalization(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "overlap"),
    [
        ("the red sea", "Red Sea.", 1, 1),
        ("the red sea", "red sea shore", 0, 0.8),  # 2 of 2 predicted, 2 of 3 wanted: 2 * 1 * 2/3 / (5/3)
        ("red", "blue", 0, 0),
        ("sea sea", "sea", 0, 2 / 3),  # the second "sea" has no partner: 1 of 2, 1 of 1
        ("sea sea", "sea sea shore sea", 0, 2 / 3),  # 2 of 2, 2 of 4
        ("", "sea", 0, 0),
        ("sea", "", 0, 0),
    ],
)
def test_exact_match_and_f1_of_two_answers(prediction: str, gold: str, exact: float, overlap: float) -> None:
    assert exact_match(prediction, gold) == exact
    assert f1(prediction, gold) == pytest.approx(overlap, abs=1e-12)


def test_two_empty_answers_agree_in_version_2_only() -> None:
    assert exact_match("the", "") == exact_match("", "") == 1
    assert f1("", "") == f1("the", "!") == 1
    assert f1("", "", empty_agrees=False) == f1("the", "!", empty_agrees=False) == 0


def test_version_1_scores_the_best_of_several_gold_answers() -> None:
    golds = [["Paris", "the city of Paris"], ["in 1887", "1887"], ["Ada Lovelace"], ["a"]]
    answers = [
        Answer(0, "city of Paris", 9.0),  # exact with the second; the margin is not used
        Answer(
            1, "1887 and 1888", 0.0
        ),  # f1 with "1887": 1 of 3, 1 of 1: 0.5; with "in 1887": 2 * 1/3 * 1/2 / (5/6) = 0.4
        Answer(2, "Charles Babbage", 0.0),
        Answer(3, "the", 0.0),  # both are empty after normalization: exact, but no common word
    ]
    scores = squad_scores(answers, golds)
    assert scores["exact_match"] == pytest.approx(100 * 2 / 4, abs=1e-9)
    assert scores["f1"] == pytest.approx(100 * (1 + 0.5 + 0 + 0) / 4, abs=1e-9)


HARD = [
    # question, best span, margin of "no answer", gold answers
    (Answer(0, "the sea", -3.0), ["sea"]),  # right, and preferred over "no answer"
    (Answer(1, "red sea", 1.0), ["sea"]),  # f1 2/3, but "no answer" is preferred at 0
    (Answer(2, "sea", -2.0), []),  # no answer, but one is given
    (Answer(3, "sea", 2.0), []),  # no answer, correctly preferred
    (Answer(4, "", -1.0), []),  # the best span is empty: right at any threshold
    (Answer(5, "a", 0.0), ["the", "shore"]),  # margin 0 is not above 0; "the" is no gold answer, so f1 0
]


def test_version_2_scores() -> None:
    answers, golds = [answer for answer, _ in HARD], [gold for _, gold in HARD]
    scores = squad_scores(answers, golds, null_threshold=0.0)
    # Answered at threshold 0: 0, 2, 4, 5. Not answered: 1 (wrong), 3 (right).
    assert scores["exact_match"] == pytest.approx(100 * (1 + 0 + 0 + 1 + 1 + 0) / 6, abs=1e-9)
    assert scores["f1"] == pytest.approx(100 * (1 + 0 + 0 + 1 + 1 + 0) / 6, abs=1e-9)
    assert scores["HasAns_f1"] == pytest.approx(100 * 1 / 3, abs=1e-9)  # 0, 1, 5
    assert scores["NoAns_exact_match"] == pytest.approx(100 * 2 / 3, abs=1e-9)  # 2, 3, 4
    # Best threshold, questions by margin: with no answer everywhere, 3 are right (2, 3, 4).
    # -3.0: question 0 answered: 4. -2.0: question 2 answered: 3. -1.0: question 4, empty: 3. 0.0: question 5: 3.
    # 1.0: question 1: exact 3, f1 3.667. 2.0: question 3 answered: less. So 4 of 6, at -3.
    for name in ("exact_match", "f1"):
        assert scores[f"best_{name}"] == pytest.approx(100 * 4 / 6, abs=1e-9)
        assert scores[f"best_{name}_thresh"] == -3.0
    at_best = squad_scores(answers, golds, null_threshold=-3.0)
    assert at_best["f1"] == pytest.approx(scores["best_f1"], abs=1e-9)


def test_no_answer_everywhere_can_be_best() -> None:
    scores = squad_scores([Answer(0, "sea", 0.0), Answer(1, "sea", 1.0)], [[], []], null_threshold=0.0)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (100.0, -1.0)
    assert "HasAns_f1" not in scores


def test_the_best_threshold_is_found_among_all() -> None:
    rng = np.random.default_rng(0)
    golds = [["sea"] if rng.random() < 0.6 else [] for _ in range(60)]
    answers = [Answer(n, str(rng.choice(["sea", "red sea", "shore", ""])), float(rng.normal())) for n in range(60)]
    scores = squad_scores(answers, golds, null_threshold=0.0)
    tried = [squad_scores(answers, golds, t)["f1"] for t in [-1e9, *(answer.no_answer for answer in answers)]]
    assert scores["best_f1"] == pytest.approx(max(tried), abs=1e-9)
    assert squad_scores(answers, golds, scores["best_f1_thresh"])["f1"] == pytest.approx(max(tried), abs=1e-9)


WINDOWS = np.array(
    # question, window, score, "no answer", begin, end
    [
        [0, 0, 1.0, 5.0, 0, 3],
        [0, 1, 4.0, 2.0, 4, 7],
        [2, 0, -np.inf, 1.0, -1, -1],
    ]
)
CONTEXTS = ["red sea shore", "unseen", "blue"]


def test_a_question_is_answered_from_its_best_window() -> None:
    first, second = best_answers(WINDOWS, CONTEXTS)
    assert first == Answer(0, "sea", 2.0 - 4.0)  # the minimum of "no answer" minus the score of the best span
    assert (second.question, second.text) == (2, "")
    assert second.no_answer > 1e5


def test_windows_of_two_processes_may_be_repeated() -> None:
    examples = {"context": CONTEXTS, "answers": [{"text": ["Sea"]}, {"text": ["x"]}, {"text": ["blue"]}]}
    one, other = SquadMetric(examples), SquadMetric(examples)
    one.update(torch.tensor(WINDOWS[[0, 2]]))
    other.update(torch.tensor(WINDOWS[[1, 2, 2]]))
    together = SquadMetric(examples)
    together.update(torch.cat([*one.windows, *other.windows]))
    # Question 0 is right in its second window, question 2 has no span, question 1 has no window.
    assert together.compute() == {"exact_match": torch.tensor(50.0), "f1": torch.tensor(50.0)}
    assert SquadMetric(examples).compute() == {"exact_match": torch.tensor(0.0), "f1": torch.tensor(0.0)}
