"""Data modules of any table: what is in a batch for each kind of labels, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from helpers.text_tables import encoded, reviews, write
from lightning.fabric.utilities.exceptions import MisconfigurationException

from pgb_lightning.datamodules import TextDataModule
from pgb_lightning.datamodules.tables import read_file
from pgb_lightning.heads import Labels
from pgb_lightning.label_kind import IGNORED

Make = Callable[..., TextDataModule]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_a_file_alone_is_split_and_its_columns_are_found(name: str, make: Make) -> None:
    data = make(reviews(label=lambda row: row % 3), name)
    assert (data.text_columns, data.columns.label) == (("review",), "label")
    assert data.labels == Labels("single_label_classification", 3)
    assert (len(data.split("train")), len(data.split("validation"))) == (36, 4)
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].dtype == torch.int64
    assert len(next(iter(data.calibration_dataloader()))["labels"]) == 20


def test_the_held_out_rows_are_the_same_for_every_seed(make: Make) -> None:
    first, second = (make(reviews(100, label=lambda row: row % 2), seed=seed) for seed in (1, 2))
    assert first.load_rows("validation")["id"][:] == second.load_rows("validation")["id"][:]
    together = [*first.load_rows("validation")["id"], *first.load_rows("train")["id"]]
    assert sorted(together) == sorted(row["id"] for row in reviews(100))


def test_splits_are_found_in_a_folder(make: Make, tmp_path: Path, tiny_model_folder: Callable[..., Path]) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    for name, count in (("train.csv", 30), ("dev.jsonl", 7), ("test.tsv", 5)):
        write(folder / name, reviews(count, label=lambda row: row % 2))
    data = TextDataModule(str(folder), str(tiny_model_folder("bert")), max_length=32)
    sizes = {split: len(data.split(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 30, "validation": 7, "test": 5}
    assert data.test_splits() == ("test",)
    other = write(tmp_path / "other.csv", reviews(3, label=lambda row: 1))
    replaced = TextDataModule(str(folder), str(tiny_model_folder("bert")), validation_data=str(other), max_length=32)
    assert len(replaced.split("validation")) == 3


@pytest.mark.parametrize("value", [lambda row: row + 0.5, lambda row: 1.0 * row + 0.25])
def test_fractions_are_values_of_a_regression(value: Callable[[int], float], make: Make) -> None:
    data = make(reviews(score=value))
    assert data.labels == Labels("regression", 1)
    assert next(iter(data.train_dataloader()))["labels"].dtype == torch.float32


def test_a_model_with_one_output_makes_integers_values(make: Make, fine_tuned: Callable[..., str]) -> None:
    data = make(reviews(score=lambda row: row % 5), model_name_or_path=fine_tuned(num_labels=1))
    assert data.labels == Labels("regression", 1)
    assert set(data.split("train")["labels"]) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_the_label_of_a_word_is_that_of_its_first_token(tmp_path: Path, tiny_model_folder: Callable[..., Path]) -> None:
    tags = ClassLabel(names=["O", "B-film", "I-film"])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(tags)})
    words = ["a", "goodfilm", "."]
    rows = Dataset.from_dict({"tokens": [words] * 12, "ner_tags": [[0, 1, 2]] * 12}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    data = TextDataModule(str(tmp_path / "rows.parquet"), str(tiny_model_folder("bert")), max_length=32)
    assert data.labels == Labels("token_classification", 3, ("O", "B-film", "I-film"))
    row = data.split("train")[0]
    starts = data.tokenizer(words, is_split_into_words=True).word_ids()
    expected = [
        IGNORED if word is None or word == before else [0, 1, 2][word]
        for word, before in zip(starts, [None, *starts], strict=False)
    ]
    assert row["labels"] == expected
    assert sorted(label for label in row["labels"] if label != IGNORED) == [0, 1, 2]
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == batch["input_ids"].shape


def test_rows_without_labels_have_none_in_any_batch(make: Make) -> None:
    data = make(reviews())
    assert data.labels is None
    for loader in (data.train_dataloader(), data.val_dataloader(), data.calibration_dataloader()):
        assert set(next(iter(loader))) == {"input_ids", "token_type_ids", "attention_mask"}
    labeled = make(reviews(label=lambda row: row % 2), use_labels=False)
    assert "labels" not in next(iter(labeled.train_dataloader()))


def test_the_text_na_is_no_missing_text(make: Make) -> None:
    rows = [{**row, "review": "NA"} for row in reviews(label=lambda row: row % 2)]
    assert set(make(rows).load_rows("train")["review"]) == {"NA"}


@pytest.mark.parametrize("column", ["encoded_label", "label", "input_ids", "labels"])
def test_columns_may_have_any_name(column: str, make: Make) -> None:
    rows = [{column: f"good {row}", "label_": row % 2, "attention_mask": "x"} for row in range(20)]
    data = make(rows, text_columns=column, label_column="label_")
    assert encoded(data) == {"0": 0, "1": 1}
    assert set(data.split("train").column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


@pytest.mark.parametrize(
    ("texts", "label"), [(("Text",), " Label "), (("Sentence1", "SENTENCE2"), "Score"), ((" text",), "TAGS")]
)
def test_common_names_are_found_in_any_case_and_with_spaces(texts: tuple[str, ...], label: str, make: Make) -> None:
    data = make([{"ID": str(row), **dict.fromkeys(texts, f"good {row}"), label: row % 2} for row in range(20)])
    assert (data.text_columns, data.columns.label) == (texts, label)


@pytest.mark.parametrize("name", ["reviews [1].csv", "reviews?.csv", "[a]/rows*.csv"])
def test_characters_of_patterns_in_a_path_are_only_characters(name: str, make: Make, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / "reviewsX.csv", reviews(label=lambda row: row % 2))
    data = make(reviews(20, label=lambda row: row % 2), name)
    assert (len(data.split("train")), len(data.split("validation"))) == (18, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "text;label\n" + "a good film;1\n" * 20, r"rows\.csv: the only column is 'text;label'.*';'"),
        ("rows.tsv", "text,label\n" + "a good film,1\n" * 20, r"rows\.tsv: the only column is 'text,label'.*','"),
        ("rows.csv", "text,label\n" + "bad, a film,1\n" * 20, r"rows\.csv: the rows have more fields.*','"),
        ("rows.csv", "text,label\n" + "a film,1,,\n" * 20, r"rows\.csv: the rows have more fields.*','"),
    ],
)
def test_a_file_with_other_separators_than_its_suffix_says_is_refused(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(MisconfigurationException, match=message):
            TextDataModule(str(tmp_path / name), "unused").load_rows("train")
    assert not [str(each.message) for each in issued if name in str(each.message)]  # such as an open file


@pytest.mark.parametrize(("late", "kind"), [("x1", "string"), (4.5, "float64"), ("", "int64")])
def test_the_type_of_a_column_follows_from_all_rows(late: Any, kind: str, tmp_path: Path) -> None:
    rows = [{"text": "a film", "note": late if row > 10_500 else row % 5} for row in range(11_000)]
    found = read_file(write(tmp_path / "rows.csv", [*rows, {"text": "a film", "note": 3}]))
    assert kind in found.features["note"].dtype or (late == "" and found[10_600]["note"] is None)
    assert str(found[11_000]["note"]) in ("3", "3.0")


@pytest.mark.parametrize(("name", "separator"), [("rows.tsv", "\t"), ("rows.csv", ",")])
def test_quotes_that_hide_rows_are_refused(name: str, separator: str, tmp_path: Path) -> None:
    texts = ['"a film' if row in (3, 9) else "a film" for row in range(20)]
    lines = [f"{text}{separator}{row % 2}" for row, text in enumerate(texts)]
    (tmp_path / name).write_text("\n".join([f"text{separator}label", *lines]) + "\n")
    with pytest.raises(MisconfigurationException, match=r"20 lines of 2 fields, but only 14 rows.*quote"):
        read_file(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv"])
def test_texts_may_have_several_lines(name: str, tmp_path: Path) -> None:
    rows = [{"text": 'a "good"\nfilm,\tor so' if row % 2 else "bad", "label": row % 2} for row in range(20)]
    assert list(read_file(write(tmp_path / name, rows))) == rows


@pytest.mark.parametrize("column", ["text", "tokens"])
def test_an_error_names_the_row_of_the_file_if_rows_are_held_out(
    column: str, tmp_path: Path, tiny_model_folder: Callable[..., Path]
) -> None:
    values: list[Any] = [None if column == "text" else [], *(["a film"] * 39 if column == "text" else [["a"]] * 39)]
    Dataset.from_dict({column: values}).to_parquet(tmp_path / "rows.parquet")
    data = TextDataModule(str(tmp_path / "rows.parquet"), str(tiny_model_folder("bert")), max_length=32)
    with pytest.raises(MisconfigurationException, match=rf"'{column}' has no \w+ in 1 of .* row 0\."):
        data.setup("fit")


def test_an_error_on_labels_of_words_names_the_row_of_the_file(make: Make) -> None:
    rows = [{"tokens": ["a", "film"], "tags": ["x", "y"] if row else ["x"]} for row in range(40)]
    with pytest.raises(MisconfigurationException, match="row 0 has 2 words, but 1 labels"):
        make(rows, "rows.jsonl", max_train_samples=36)


def test_a_separator_in_a_text_is_none_of_fields(make: Make) -> None:
    rows = [{"text; or so": "good; bad" if row else "good"} for row in range(20)]
    assert make(rows).text_columns == ("text; or so",)


TWO_TEXTS = [{"title": "a", "body": "b", "label": row % 2} for row in range(20)]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (reviews(label=lambda row: row % 2), {"text_columns": "texts"}, r"text_columns='texts' .*review"),
        (reviews(label=lambda row: row % 2), {"label_column": "stars"}, r"label_column='stars' .*label"),
        (TWO_TEXTS, {}, r"text_columns=None .*title, body"),
        (reviews(label=lambda row: row % 2)[:5], {}, r"rows\.csv has 5 rows.*validation_data"),
        (
            [{"review": "" if row == 3 else "a", "label": 1} for row in range(20)],
            {},
            r"'review' has no text in 1 of 18",
        ),
        (reviews(label=lambda row: 1 if row else ""), {}, r"'label' has the label None"),
        (
            reviews(labels=lambda row: row % 2),
            {"problem_type": "multi_label_classification"},
            r"'labels' has the label",
        ),
        (
            reviews(label=lambda row: 0.5),
            {"problem_type": "single_label_classification"},
            r"'label' has the number 0\.5",
        ),
        (reviews(label=lambda row: "good"), {}, r"'label' has the one class 'good'"),
        (
            reviews(label=lambda row: row % 2),
            {"text_columns": ["review", "review"]},
            r"text_columns=\['review', 'review'\]",
        ),
        (reviews(label=lambda row: row % 2), {"label_names": ["a", "a"]}, r"label_names=\['a', 'a'\]"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(
    rows: list[dict[str, Any]], settings: dict[str, Any], message: str, make: Make
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        make(rows, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "missing.csv"}, r"data='missing\.csv' does not exist"),
        ({"data": "."}, r"data='\.' has no file"),
        ({"validation_data": "no.csv"}, r"validation_data='no\.csv' does not exist"),
        ({"problem_type": "ranking"}, r"problem_type='ranking'"),
        ({"label_separator": ""}, r"label_separator=''"),
        ({"use_labels": False, "label_column": "label"}, r"use_labels=False .*label_column='label'"),
        ({"batch_size": 0}, r"batch_size=0"),
    ],
)
def test_invalid_settings_are_refused_at_once(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.csv", reviews())
    with pytest.raises(MisconfigurationException, match=message):
        TextDataModule(**{"data": "rows.csv", "model_name_or_path": "unused", **settings})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, tiny_model_folder: Callable[..., Path]) -> None:
    for name, content in (("empty.csv", b""), ("broken.jsonl", b"{no"), ("broken.parquet", b"PAR1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MisconfigurationException, match=name):
            TextDataModule(str(tmp_path / name), str(tiny_model_folder("bert"))).split("train")


def test_words_without_a_label_each_are_refused(tmp_path: Path, tiny_model_folder: Callable[..., Path]) -> None:
    rows = [{"tokens": ["a", "film"], "tags": ["O", "B-x"][: 1 + (row != 7)]} for row in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
    held_out = write(tmp_path / "held_out.jsonl", rows[:2])
    with pytest.raises(MisconfigurationException, match=r"row 7 has 2 words, but 1 labels .*'tags'"):
        TextDataModule(str(path), str(tiny_model_folder("bert")), validation_data=str(held_out)).split("train")


def test_words_that_are_null_are_refused(tmp_path: Path, tiny_model_folder: Callable[..., Path]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"tokens": ["a", "film" if row else None]} for row in range(20)])
    data = TextDataModule(str(path), str(tiny_model_folder("bert")), validation_data=str(path), max_length=32)
    with pytest.raises(MisconfigurationException, match=r"'tokens' has 1 words that are null"):
        data.split("train")


@pytest.mark.parametrize(("columns", "length"), [(["title"], 2), (["title", "body"], 3)])
def test_a_max_length_that_is_taken_by_special_tokens_is_refused(columns: list[str], length: int, make: Make) -> None:
    data = make(TWO_TEXTS, text_columns=columns)
    data.max_length = length
    del data.tokenizer
    with pytest.raises(MisconfigurationException, match=rf"max_length={length} .*Use {length + 1}"):
        _ = data.tokenizer
