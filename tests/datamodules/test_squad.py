"""SQuAD: batches, calibration, held-out articles and unusable questions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.fakes import squad_folder, squad_rows
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules import SQuADDataModule, files
from pgb_lightning.datamodules.windows import training_windows
from pgb_lightning.modules.spans import best_spans
from pgb_lightning.modules.squad_metrics import SquadMetric

Folder = Callable[..., Path]
SMALL: dict[str, Any] = {"max_length": 100, "stride": 16, "batch_size": 8, "eval_batch_size": 8}


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def model(request: pytest.FixtureRequest, tiny_model_folder: Folder) -> str:
    return str(tiny_model_folder(request.param, max_position_embeddings=128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squad_folder(tmp_path_factory.mktemp("squad") / "rows", "2.0")


def make_data(model: str, folder: Path, **settings: Any) -> SQuADDataModule:
    return SQuADDataModule(model, **{"version": "2.0", "data_dir": str(folder), **SMALL, **settings})


def test_batches(model: str, folder: Path) -> None:
    data = make_data(model, folder)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    inputs = {"input_ids", "attention_mask", *({"token_type_ids"} if "distil" not in model else set())}
    assert batch.keys() == {*inputs, "start_positions", "end_positions"}
    evaluated = [batch for loader in [data.val_dataloader()] for batch in loader]  # type: ignore[union-attr]
    assert evaluated[0].keys() == {*inputs, "question", "window", "context_offsets"}
    assert all(batch["context_offsets"].shape == (*batch["input_ids"].shape, 2) for batch in evaluated)
    questions = np.concatenate([batch["question"].numpy() for batch in evaluated])
    assert set(questions) == set(range(20))
    assert len(questions) > 20  # contexts of 120 words make several windows
    padding = evaluated[0]["attention_mask"] == 0
    assert (evaluated[0]["context_offsets"][padding] == -1).all()


def test_evaluation_by_length_has_the_same_windows_with_less_padding(model: str, folder: Path) -> None:
    def evaluated(**settings: Any) -> tuple[list[tuple[int, int]], int]:
        data = make_data(model, folder, **settings)
        data.setup("validate")
        batches = list(data.val_dataloader())
        windows = [
            pair for batch in batches for pair in zip(batch["question"].tolist(), batch["window"].tolist(), strict=True)
        ]
        return windows, sum(batch["input_ids"].numel() for batch in batches)

    plain, by_length = evaluated(), evaluated(group_by_length=True)
    assert plain[0] != by_length[0]
    assert sorted(plain[0]) == sorted(by_length[0])
    assert by_length[1] < plain[1]


def test_calibration_is_drawn_by_question_and_reproducible(model: str, tmp_path: Path) -> None:
    rows = squad_folder(tmp_path / "rows", "2.0", train=60)
    squad_rows(60, "2.0", seed=1, words=110).to_parquet(rows / "train.parquet")
    data = make_data(model, rows, calibration_size=30, calibration_batch_size=4)
    train = data.split("train")
    drawn = [[batch["input_ids"].shape for batch in data.calibration_dataloader()] for _ in range(2)]
    assert drawn[0] == drawn[1]
    chosen = data._draw_calibration_rows(train, 30)
    questions = np.asarray(train["question"][:])[chosen]
    assert len(set(questions)) == 30
    assert len(chosen) == sum(np.isin(np.asarray(train["question"][:]), questions)) > 30
    answered = [bool(data.examples("train")[int(number)]["answers"]["text"]) for number in sorted(set(questions))]
    assert abs(np.mean(answered) - 2 / 3) <= 0.05
    assert sum(shape[0] for shape in drawn[0]) == len(chosen)
    with pytest.raises(MisconfigurationException, match=r"calibration_size=99 .*60"):
        make_data(model, rows, calibration_size=99).calibration_dataloader()


def test_complete_articles_are_held_out(model: str, folder: Path) -> None:
    data = make_data(model, folder, hold_out=10)
    train, validation = data.examples("train"), data.examples("validation")
    assert len(train) + len(validation) == 40
    assert len(validation) >= 10
    assert not set(train["title"]) & set(validation["title"])
    assert validation["id"][:] == make_data(model, folder, hold_out=10).examples("validation")["id"][:]
    with pytest.raises(MisconfigurationException, match="hold_out=40"):
        make_data(model, folder, hold_out=40).setup("fit")


def change_rows(folder: Path, change: Callable[[dict[str, Any], int], None], split: str = "train") -> Path:
    rows = squad_folder(folder, "1.1") / f"{split}.parquet"
    table = datasets.Dataset.from_parquet(str(rows))
    changed = [dict(row) for row in table]
    for number, row in enumerate(changed):
        change(row, number)
    datasets.Dataset.from_list(changed, table.features).to_parquet(rows)
    return folder


def test_unusable_questions_are_counted_and_skipped(model: str, tmp_path: Path) -> None:
    def change(row: dict[str, Any], number: int) -> None:
        if number in (1, 2):
            row["question"] = "  "
        if number == 3:
            row["answers"]["answer_start"][0] += 1
        if number == 4:  # an answer longer than a window
            row["context"] = " ".join(["film"] * 300)
            row["answers"] = {"text": [" ".join(["film"] * 150)], "answer_start": [5]}

    data = make_data(model, change_rows(tmp_path / "rows", change), version="1.1")
    with pytest.warns(UserWarning, match="4 questions") as caught:
        train = data.split("train")
    [text] = {str(one.message) for one in caught if "4 questions" in str(one.message)}
    for reason in (
        "2 with an empty question",
        "1 with an answer that is not at its position",
        "1 with an answer in no window",
    ):
        assert reason in text
    assert len(set(train["question"])) == 36
    assert min(train["end_positions"]) >= 0


def test_evaluation_uses_every_question(model: str, tmp_path: Path) -> None:
    def change(row: dict[str, Any], number: int) -> None:
        row["question"] = ""

    data = make_data(model, change_rows(tmp_path / "rows", change, "validation"), version="1.1")
    assert set(data.split("validation")["question"]) == set(range(20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "3"}, "version='3'"),
        ({"stride": 40}, "stride=40 .*max_length=100 .*0 to 31"),
        ({"stride": -1}, "stride=-1"),
        ({"max_length": 60}, "max_length=60 .*64 tokens"),
        ({"hold_out": 0}, "hold_out=0"),
        ({"data_dir": "no/such/folder"}, "data_dir='no/such/folder'.* squad_v2's"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_an_invalid_setting_is_rejected_first(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        make_data("no/such/model", folder, **settings)


def test_the_error_for_a_missing_split_or_column_names_it(model: str, tmp_path: Path) -> None:
    rows = squad_folder(tmp_path / "rows", "1.1")
    (rows / "validation.parquet").unlink()
    with pytest.raises(MisconfigurationException, match=r"'validation'.* hold_out"):
        make_data(model, rows, version="1.1").setup("fit")
    train = datasets.Dataset.from_parquet(str(rows / "train.parquet"))
    train.remove_columns("answers").to_parquet(rows / "train.parquet")
    with pytest.raises(MisconfigurationException, match=r"train\.parquet .*'answers'.* id"):
        make_data(model, rows, version="1.1").setup("fit")
    flat = train.remove_columns("answers").add_column("answers", ["x"] * len(train))
    flat.to_parquet(rows / "train.parquet")
    with pytest.raises(MisconfigurationException, match=r"'answers'.* 'text' and 'answer_start'"):
        make_data(model, rows, version="1.1").setup("fit")


def test_without_a_folder_rows_are_loaded_from_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[Any] = []

    def fake(*words: Any, split: str) -> datasets.Dataset:
        requested.append((*words, split))
        return squad_rows(9)

    monkeypatch.setattr(files, "load_dataset", fake)
    SQuADDataModule(model, **SMALL).setup("fit")
    assert set(requested) == {("rajpurkar/squad", None, "train"), ("rajpurkar/squad", None, "validation")}


@pytest.mark.skipif("PGB_DATA_DIR" not in os.environ, reason="PGB_DATA_DIR does not name a folder with real data")
def test_logits_that_point_to_the_answers_of_real_squad_score_full_marks(tiny_model_folder: Folder) -> None:
    """Windows, positions, spans and scores of all 10,570 validation questions agree."""
    folder = Path(os.environ["PGB_DATA_DIR"]) / "squad"
    data = SQuADDataModule(str(tiny_model_folder("bert", max_position_embeddings=384)), data_dir=str(folder))
    examples = data.examples("validation")
    table = examples.map(
        training_windows,
        batched=True,
        with_indices=True,
        remove_columns=examples.column_names,
        fn_kwargs={"tokenizer": data.tokenizer, "max_length": 384, "stride": 128},
    )
    metric, row = SquadMetric(examples), 0
    for batch in data.val_dataloader():  # type: ignore[union-attr]
        logits = torch.zeros(2, *batch["input_ids"].shape)
        for window in range(logits.shape[1]):
            logits[0, window, table[row]["start_positions"]] = logits[1, window, table[row]["end_positions"]] = 9
            row += 1
        score, span, null = best_spans(*logits, batch["context_offsets"], max_answer_length=384)
        places = torch.stack([batch["question"], batch["window"]], 1).float()
        metric.update(torch.cat([places, torch.stack([score, null], 1), span.float()], 1))
    scores = metric.compute()
    assert row == len(table)
    assert float(scores["exact_match"]) > 99
