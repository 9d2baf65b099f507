"""Results a line each: found again, shared, and an unfinished or foreign file seen to first."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgb_lightning.experiments.records import ResultLines


def test_results_are_found_again_by_what_is_known_of_them(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "out.jsonl")
    first = ResultLines(path)
    results = [{"method": name, "options": {"by_length": True}, "score": number} for number, name in enumerate("ab")]
    for result in results:
        first.add(result)
    for kept in (first, ResultLines(path)):
        assert kept.find({"method": "b", "options": {"by_length": True}}) == results[1]
        assert kept.find({"method": "b", "options": None}) is None
        assert kept.find({"method": "b", "seed": 0}) is None
    another = ResultLines(path)
    another.add({"method": "c"})
    assert len(Path(path).read_text().splitlines()) == 3


def test_an_unfinished_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for unfinished in ('{"method": "b", "sco', '{"method": "b"}'):
        path.write_text('{"method": "a"}\n' + unfinished)
        kept = ResultLines(str(path))
        assert kept.find({"method": "b"}) is None
        kept.add({"method": "b", "score": 1.0})
        assert ResultLines(str(path)).find({"method": "b"}) == {"method": "b", "score": 1.0}


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    for text in ('{\n "task": "sst2"\n}\n', "[1, 2]\n3\n", "method,score\n"):
        path = tmp_path / "out.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"out='.*out\.json' holds something else than one result a line: name"):
            ResultLines(str(path))
        assert path.read_text() == text
    with pytest.raises(ValueError, match=r"out='.*' is a folder: name a file"):
        ResultLines(str(tmp_path))


def test_nothing_is_kept_without_a_file() -> None:
    kept = ResultLines(None)
    kept.add({"method": "a"})
    assert kept.find({"method": "a"}) == {"method": "a"}
