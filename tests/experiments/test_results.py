"""One table and one figure of many results: results of equal settings are averaged, others raise."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.experiments import results

Result = dict[str, Any]


def result(method: str = "default", ratio: float = 0.5, seed: int = 0, score: float = 80.0, **others: Any) -> Result:
    """Make a result of one method, ratio and seed, as the ablations write it."""
    settings = {"task": "sst2", "max_train_samples": None, "refinetuning_epochs": 1}
    cell = {"checkpoint": f"seed{seed}/dense.ckpt", "weights": f"{seed:016}", "seed": seed}
    measured = {"kind": "shapes", "removed": ratio + 0.01, "score": score, "loss": 0.25, "divergence": 0.0125}
    after = {"refinetuned": {"score": score + 1, "loss": 0.5, "divergence": 0.0625}} if method != "dense" else {}
    return {**settings, **cell, "method": method, "ratio": ratio, **measured, **after, **others}


def write(path: Path, *found: Result) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return str(path)


def rows_of(shown: str) -> list[list[str]]:
    """Return the cells of a Markdown table, the header first, without the delimiter row."""
    head, below, *lines = filter(str.strip, shown.splitlines())
    assert set(below.strip()) == {"|", "-"}
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in (head, *lines)]


def test_seeds_are_averaged_and_tasks_keep_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(
        tmp_path / "sst2.jsonl",
        *(result(seed=seed, score=80.0 + seed) for seed in range(3)),
        result("dense", 0.0, score=90.0),
        result("kwon", 0.3, kind="masks"),
    )
    second = write(tmp_path / "cola.jsonl", result(task="cola", score=20.0, max_train_samples=8))
    results.run((first, second), markdown=True)
    head, *rows = rows_of(capsys.readouterr().out)
    assert head[:5] == ["task", "ratio", "method", "kind", "removed, %"]
    assert head[5:] == ["score x 100", "divergence", "loss", "re-finetuned", "divergence", "loss", "seeds"]
    assert [row[:3] for row in rows] == [
        ["sst2 accuracy", "0.0", "dense"],
        ["sst2 accuracy", "0.3", "kwon"],
        ["sst2 accuracy", "0.5", "default"],
        ["cola matthews", "0.5", "default"],
    ]
    assert rows[0][5:] == ["90.0", "0.0125", "0.250", "-", "-", "-", "1"]
    assert rows[1][3] == "masks"
    assert rows[2][3:8] == ["shapes", "51.0 ± 0.0", "81.0 ± 1.0", "0.0125 ± 0.0000", "0.250 ± 0.000"]
    assert rows[2][8:] == ["82.0 ± 1.0", "0.0625 ± 0.0000", "0.500 ± 0.000", "3"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((4.6e-5, 2e-3), ["0.000046", "0.002000"]),
        ((0.0, 2e-3), ["0.0000", "0.0020"]),
        ((1e-4, 2e-3), ["0.0001", "0.0020"]),
        ((math.nan, math.inf), ["nan", "inf"]),
    ],
)
def test_divergences_that_would_be_zero_have_two_significant_digits(
    values: tuple[float, float], shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = zip(("default", "fisher"), values, strict=True)
    found = [
        result(name, refinetuned={"score": 80.0, "loss": 0.5, "divergence": 0.5}, divergence=d) for name, d in methods
    ]
    results.run(write(tmp_path / "out.jsonl", *found), markdown=True)
    _, *rows = rows_of(capsys.readouterr().out)
    assert [row[6] for row in rows] == shown


def test_methods_are_selected_and_ordered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "out.jsonl", *(result(name) for name in ("default", "paper", "kwon", "dense")))
    shown = results.run((path,), methods=("kwon", "default"))
    assert [one["method"] for one in shown] == ["dense", "kwon", "default"]
    second = write(tmp_path / "cola.jsonl", *(result(name, task="cola") for name in ("default", "dense")))
    shown = results.run((str(tmp_path / "out.jsonl"), second), methods=("kwon", "default"))
    assert [one["task"] for one in shown] == ["sst2"] * 3 + ["cola"] * 2
    table = capsys.readouterr().out
    assert "One-shot, and re-finetuned" in table
    assert "paper" not in table
    one_shot = [{name: value for name, value in one.items() if name != "refinetuned"} for one in shown]
    assert results.run(write(tmp_path / "one.jsonl", *one_shot), markdown=True) == one_shot
    head, *rows = rows_of(capsys.readouterr().out)
    assert head[5:] == ["score x 100", "divergence", "loss", "seeds"]
    assert {tuple(row[5:]) for row in rows} == {("80.0", "0.0125", "0.250", "1")}


def test_some_results_may_lack_refinetuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    not_yet = {name: value for name, value in result(seed=1).items() if name != "refinetuned"}
    results.run(write(tmp_path / "out.jsonl", result(), not_yet), markdown=True)
    _, row = rows_of(capsys.readouterr().out)
    assert row[5:] == ["80.0 ± 0.0", "0.0125 ± 0.0000", "0.250 ± 0.000", "81.0", "0.0625", "0.500", "2 (1)"]


def test_duplicate_results_count_once(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", result(), result(score=81.0), result(seed=1), result(weights="f" * 16))
    assert [one["score"] for one in results.run((path, path))] == [80.0, 80.0, 80.0]


def test_a_file_in_use_is_read_and_not_changed(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "out.jsonl", result()))
    text = path.read_text() + json.dumps(result("kwon"))[:-9]
    path.write_text(text)
    assert [one["method"] for one in results.run((str(path),))] == ["default"]
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_train_samples", (None, 8)),
        ("refinetuning_epochs", (0, 1)),
        ("refinetuning_learning_rate", (None, 1e-4)),
        ("data_options", (None, {"group_by_length": True})),
        ("calibration_size", (None, 64)),
        ("model_name_or_path", ("one", "another")),
    ],
)
def test_results_of_different_settings_raise(name: str, values: tuple[object, object], tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{n}.jsonl", result(**{name: value})) for n, value in enumerate(values))
    expected = f"files .*sst2.*{name} is {re.escape(' and '.join(map(json.dumps, values)))}"
    with pytest.raises(ValueError, match=expected):
        results.run((first, second))  # even of one model and seed
    other = write(tmp_path / "other.jsonl", result("kwon", seed=1, **{name: values[1]}))
    with pytest.raises(ValueError, match=expected):
        results.run((first, other))
    assert len(results.run((first, other), methods=("kwon",))) == 1
    assert len(results.run((first, write(tmp_path / "task.jsonl", result(task="cola", **{name: values[1]}))))) == 2


def test_data_folders_may_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", result(data_dir="here"), result(seed=1, data_dir="there"))
    assert len(results.run(path)) == 2


def test_invalid_files_and_methods_raise(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match=f"files .*'{missing}'"):
            results.run((str(missing),))
    for text in ("score\n1\n", "[1, 2]\n"):
        (tmp_path / "other.txt").write_text(text)
        with pytest.raises(ValueError, match=r"files='.*other\.txt'"):
            results.run((str(tmp_path / "other.txt"),))
    for name in ("weights", "seed", "score", "kind"):
        lacking = {key: value for key, value in result().items() if key != name}
        with pytest.raises(ValueError, match=rf"files='.*out\.jsonl' .*'{name}'"):
            results.run(write(tmp_path / "out.jsonl", result(), lacking))
    for text in ("", '{"task": "ss'):
        (tmp_path / "new.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"files=\['.*new\.jsonl'\] .*no results"):
            results.run(str(tmp_path / "new.jsonl"))
    path = write(tmp_path / "out.jsonl", result(), result("paper"))
    with pytest.raises(ValueError, match=r"methods .*'kwon'.* 'default', 'paper'"):
        results.run((path,), methods=("kwon",))
    for out in ("scores", "scores.jpg", "scores.jsonl"):
        with pytest.raises(ValueError, match=rf"out='{out}' .*\.svg, \.png, \.pdf"):
            results.run(path, out=out)


def test_a_loss_of_nan_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "out.jsonl", result(), result(seed=1, loss=math.nan, score=82.0))
    results.run(path, markdown=True)
    assert rows_of(capsys.readouterr().out)[1][5:8] == ["81.0 ± 1.4", "0.0125 ± 0.0000", "nan ± nan"]


def test_figures_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "pgb-lightning\[figures\]"'):
        results.run(write(tmp_path / "out.jsonl", result()), out=str(tmp_path / "scores.svg"))


@pytest.mark.parametrize(("tasks", "methods"), [(1, 2), (2, 5), (4, 14)])
def test_the_legend_is_not_cut_off(tasks: int, methods: int) -> None:
    names = [f"default, without a part {number}" for number in range(methods)]
    found = [result(name, task=task) for task in ("sst2", "cola", "mrpc", "qnli")[:tasks] for name in names]
    figure = results.draw(found)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= inside.x0 < inside.x1 <= whole.x1
    assert whole.y0 <= inside.y0 < inside.y1 <= min(axes.bbox.y0 for axes in figure.axes)


def test_scores_are_drawn_against_the_removed_fraction(tmp_path: Path) -> None:
    found = [
        result(name, ratio, seed, 80 + seed) for name in ("default", "kwon") for ratio in (0.3, 0.5) for seed in (0, 1)
    ]
    dense = [result("dense", 0.0, seed, 88.0 + 2 * seed) for seed in (0, 1)]
    path = write(tmp_path / "out.jsonl", *dense, *found, result(task="cola", ratio=0.7))
    out = tmp_path / "img" / "scores.svg"
    shown = results.run((path,), out=str(out))
    assert "<svg" in out.read_text()
    figure = results.draw(shown)
    before, other, after, _ = figure.axes
    assert [axes.get_title() for axes in (before, other, after)] == ["sst2, accuracy", "cola, matthews", ""]
    assert [axes.get_ylabel() for axes in (before, after)] == ["one-shot, x 100", "re-finetuned, x 100"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "default", "kwon"]
    for axes, middle in ((before, 80.5), (after, 81.5)):
        assert set(axes.lines[0].get_ydata()) == {89.0}
        (band,) = axes.patches
        assert [band.get_y(), band.get_height()] == pytest.approx([89 - 2**0.5, 2 * 2**0.5])
        assert len(axes.containers) == 2
        for container in axes.containers:
            line, _, (bars,) = container
            assert list(line.get_xdata()) == pytest.approx([0.31, 0.51])
            assert list(line.get_ydata()) == [middle, middle]
            for (_, low), (_, high) in bars.get_segments():
                assert [low, high] == pytest.approx([middle - 0.5**0.5, middle + 0.5**0.5])
    one_shot = [{name: value for name, value in one.items() if name != "refinetuned"} for one in shown]
    assert len(results.draw(one_shot).axes) == 2
    longer = result("dense", 0.0, score=70.0, refinetuned={"score": 75.0, "loss": 0.5, "divergence": 0.25})
    before, after = results.draw([longer, result()]).axes
    assert [set(axes.lines[0].get_ydata()) for axes in (before, after)] == [{70.0}, {75.0}]
