"""The paper's tables: drops from the dense model of the same seed, beside the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pgb_lightning.experiments import paper_numbers, paper_tables
from pgb_lightning.experiments.records import Result

SETTINGS = {
    "model_name_or_path": "minilm-l6",
    "max_train_samples": None,
    "data_options": {},
    "epochs": 3,
    "learning_rate": 5e-5,
    "precision": "bf16-mixed",
}


def dense(task: str = "sst2", seed: int = 0, score: float = 0.9, metric: str = "val_accuracy", **others: Any) -> Result:
    """Make the result of a dense model, as the command writes it."""
    cell = {"task": task, **SETTINGS, "seed": seed, "method": "dense", "ratio": 0.0}
    return {**cell, "removed": 0.0, "flops": 10**9, "after": {metric: score}, "finetuning": None, **others}


def pruned(
    scores: tuple[float, float],
    ratio: float = 0.88,
    recovery: str = "distill",
    metric: str = "val_accuracy",
    **others: Any,
) -> Result:
    """Make the result of a pruned model with scores before and after re-finetuning."""
    before, after = ({metric: score} for score in scores)
    return {
        **dense(),
        "method": "default",
        "ratio": ratio,
        "recovery": recovery,
        "refinetuning_settings": {"epochs": 3, "learning_rate": 1e-4},
        "removed": ratio + 0.001,
        "flops": 130_000_000,
        "before": before,
        "after": after,
        "pruning": {"seconds": 360.0, "peak_memory_bytes": 2_000_000_000},
        "refinetuning": {"seconds": 1800.0, "peak_memory_bytes": 3_000_000_000},
        **others,
    }


def write(path: Path, *found: Result) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return str(path)


def rows_of(shown: str) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Return the rows of the tables by title and first two cells."""
    tables: dict[str, dict[tuple[str, str], list[str]]] = {}
    title = ""
    for line in shown.splitlines():
        if line.startswith("Table"):
            title = line.split(":")[0]
            tables[title] = {}
        elif line.startswith("|") and not line.startswith("|-"):
            first, second, *rest = (cell.strip() for cell in line.strip().strip("|").split("|"))
            tables[title][first, second] = rest
    return tables


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Return files of two tasks, with results of two seeds of one of them."""
    sst2 = write(
        tmp_path / "sst2.jsonl",
        dense(),
        dense(seed=1, score=0.91),
        pruned((0.86, 0.89)),
        pruned((0.85, 0.88), seed=1),
        pruned((0.89, 0.895), ratio=0.4, recovery="finetune"),
        pruned((0.84, 0.87), ratio=0.6, recovery="finetune"),
    )
    squad = write(
        tmp_path / "squad.jsonl",
        dense(task="squad", score=80.0, metric="val_f1"),
        pruned((70.0, 76.5), ratio=0.5, task="squad", metric="val_f1"),
    )
    return squad, sst2


def test_drops_are_those_from_the_dense_model_of_the_same_seed(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    paper_tables.run(files, markdown=True)
    tables = rows_of(capsys.readouterr().out)
    first = tables["Table 1"]
    assert first["removed", "method"] == ["sst2", "squad"]
    assert first["0 %", "dense, score"] == ["90.5 ± 0.7", "80.0"]
    assert first["0 %", "paper, BERT-base: dense, score"] == ["93.2", "88.3"]
    assert first["88 %", "default, distill"] == ["2.0 ± 1.4", "-"]
    assert first["50 %", "default, distill"] == ["-", "3.5"]
    assert first["88 %", "paper, BERT-base: PGB"] == ["3.6", "7.1"]
    assert first["50 %", "paper, BERT-base: CoFi"] == ["3.1", "-"]
    third = tables["Table 3"]
    assert third["sst2", "default, finetune"] == ["1.0", "0.5", "6.0", "3.0"]
    assert third["sst2", "paper, BERT-base: PGB"] == ["1.0", "0.5", "2.9", "1.6"]
    fourth = tables["Table 4"]
    hours = "0.10 ± 0.00 + 0.50 ± 0.00"
    assert fourth["sst2", "default, distill"] == ["0 + 3", hours, "3.0 ± 0.0", "0.13 ± 0.00", "88.5 ± 0.7"]
    assert fourth["qqp", "paper, BERT-base: PGB"] == ["0 + 3", "≤ 0.1 + 2", "-", "2.60", "90.1"]


def test_published_numbers_are_those_of_the_paper() -> None:
    assert paper_numbers.DENSE.keys() == set(paper_numbers.TASKS)
    assert paper_numbers.TABLE_1[0.88]["PGB"]["cola"] == 39.5
    assert "squad" not in paper_numbers.TABLE_1[0.88]["CoFi"]
    for ratio, rows in paper_numbers.TABLE_1.items():
        assert all(score < paper_numbers.DENSE[task] for task, score in rows["PGB"].items()), ratio
        assert rows["PGB"].keys() == set(paper_numbers.TASKS)


def test_the_figure_has_a_panel_for_every_task(files: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paper_tables.run(files, out=str(tmp_path / "lost.svg"))
    assert "<svg" in (tmp_path / "lost.svg").read_text()
    axes = paper_tables.draw(paper_tables.read_lost(files)).axes
    assert [panel.get_title() for panel in axes] == ["sst2", "squad"]
    labels = [set(panel.get_legend_handles_labels()[1]) for panel in axes]
    assert labels[0] == {"default, distill", "default, finetune", "paper, BERT-base: PGB"}
    assert all(panel.yaxis_inverted() for panel in axes)


@pytest.mark.parametrize(
    ("results", "match"),
    [
        ([dense()], "no pruned models"),
        ([dense(seed=1), pruned((0.8, 0.8))], "no dense model of sst2 with seed 0"),
        ([dense(), pruned((0.8, 0.8), epochs=1)], "sst2 .*epochs is 3 and 1"),
        (
            [dense(), pruned((0.8, 0.8)), pruned((0.8, 0.8), ratio=0.5, refinetuning_settings={"epochs": 1})],
            "sst2 with default, distill .*refinetuning_settings",
        ),
        ([{"task": "sst2"}], "files=.*'seed'"),
    ],
)
def test_results_that_must_not_be_averaged_raise(results: list[Result], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        paper_tables.run(write(tmp_path / "out.jsonl", *results))


def test_missing_files_and_other_figures_raise(files: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"files .*'missing\.jsonl'"):
        paper_tables.run("missing.jsonl")
    with pytest.raises(ValueError, match=r"out='lost\.txt'"):
        paper_tables.run(files, out="lost.txt")
