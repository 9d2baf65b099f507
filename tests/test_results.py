"""One table and one figure of many results: averaged where they may be, and refused where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning import results

Result = dict[str, Any]


def result(method: str = "default", ratio: float = 0.5, seed: int = 0, score: float = 80.0, **others: Any) -> Result:
    """Make up what the ablations measure of one method, ratio and seed."""
    settings = {"task": "sst2", "max_train_samples": None, "refinetuning_epochs": 1}
    cell = {"checkpoint": f"seed{seed}/dense.ckpt", "weights": f"{seed:016}", "seed": seed}
    measured = {"kind": "shapes", "removed": ratio, "score": score, "loss": 0.25, "divergence": 0.0125}
    after = {"refinetuned": {"score": score + 1, "loss": 0.5, "divergence": 0.0625}} if method != "dense" else {}
    return {**settings, **cell, "method": method, "ratio": ratio, **measured, **after, **others}


def write(path: Path, *found: Result) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return str(path)


def rows_of(shown: str) -> list[list[str]]:
    """Split a Markdown table into its cells, without its head."""
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_seeds_are_averaged_and_tasks_stand_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(
        tmp_path / "sst2.jsonl",
        *(result(seed=seed, score=80.0 + seed) for seed in range(3)),
        result("dense", 0.0, score=90.0),
        result("kwon", 0.3),
    )
    second = write(tmp_path / "cola.jsonl", result(task="cola", score=20.0, max_train_samples=8))
    results.run((first, second), markdown=True)
    rows = rows_of(capsys.readouterr().out)
    assert [row[:3] for row in rows] == [
        ["sst2 accuracy", "0.0", "dense"],
        ["sst2 accuracy", "0.3", "kwon"],
        ["sst2 accuracy", "0.5", "default"],
        ["cola matthews", "0.5", "default"],
    ]
    assert rows[0][5:] == ["90.0", "0.0125", "0.250", "-", "-", "-", "1"]
    assert rows[2][3:8] == ["shapes", "50.0 ± 0.0", "81.0 ± 1.0", "0.0125 ± 0.0000", "0.250 ± 0.000"]
    assert rows[2][8:] == ["82.0 ± 1.0", "0.0625 ± 0.0000", "0.500 ± 0.000", "3"]


def test_methods_are_picked_and_ordered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "out.jsonl", *(result(name) for name in ("default", "paper", "kwon", "dense")))
    shown = results.run((path,), methods=("kwon", "default"))
    assert [one["method"] for one in shown] == ["dense", "kwon", "default"]
    assert "paper" not in capsys.readouterr().out


def test_a_result_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", result(), result(score=81.0), result(seed=1), result(weights="f" * 16))
    assert [one["score"] for one in results.run((path, path))] == [80.0, 80.0, 80.0]


def test_a_file_in_use_is_read_and_left_alone(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "out.jsonl", result()))
    text = path.read_text() + json.dumps(result("kwon"))[:-9]
    path.write_text(text)
    assert [one["method"] for one in results.run((str(path),))] == ["default"]
    assert path.read_text() == text


def test_what_was_trained_in_different_ways_is_not_averaged(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", result(), result(seed=1, max_train_samples=8))
    with pytest.raises(ValueError, match="files hold results of sst2 with max_train_samples of null and 8, which are"):
        results.run((path,))
    path = write(tmp_path / "out.jsonl", result(), result(seed=1, refinetuning_learning_rate=1e-4))
    with pytest.raises(ValueError, match=r"refinetuning_learning_rate of null and 0\.0001"):
        results.run((path,))


def test_other_files_and_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"files names '.*none\.jsonl', which is not there: give what --out"):
        results.run((str(tmp_path / "none.jsonl"),))
    with pytest.raises(ValueError, match=r"files names '.*', which is not there"):
        results.run((str(tmp_path),))
    for text in ("score\n1\n", "[1, 2]\n", '{"score": 1}\n'):
        (tmp_path / "other.txt").write_text(text)
        with pytest.raises(ValueError, match=r"files='.*other\.txt' holds something else than one result a line"):
            results.run((str(tmp_path / "other.txt"),))
    path = write(tmp_path / "out.jsonl", result(), result("paper"))
    with pytest.raises(ValueError, match="methods names 'kwon', which is none of 'default', 'paper'"):
        results.run((path,), methods=("kwon",))


def test_scores_are_drawn_against_what_was_removed(tmp_path: Path) -> None:
    found = [
        result(name, ratio, seed, 80 + seed) for name in ("default", "kwon") for ratio in (0.3, 0.5) for seed in (0, 1)
    ]
    path = write(tmp_path / "out.jsonl", result("dense", 0.0, score=90.0), *found, result(task="cola", ratio=0.7))
    out = tmp_path / "img" / "scores.svg"
    shown = results.run((path,), out=str(out))
    assert "<svg" in out.read_text()
    figure = results.draw(shown)
    before, _, after, _ = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "default", "kwon"]
    for axes, middle in ((before, 80.5), (after, 81.5)):
        dense, *lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() != "_"]
        assert set(dense.get_ydata()) == {90.0}
        assert [list(line.get_xdata()) for line in lines if line.get_marker() in "os"] == [[0.3, 0.5], [0.3, 0.5]]
        assert [list(line.get_ydata()) for line in lines if line.get_marker() in "os"] == [[middle, middle]] * 2
    one_shot = [{name: value for name, value in one.items() if name != "refinetuned"} for one in shown]
    assert len(results.draw(one_shot).axes) == 2
