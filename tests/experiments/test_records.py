"""JSON-lines files of results: results are found again, and incomplete or other files are recognized."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from filelock import FileLock

from pgb_lightning.experiments.records import ResultFile


def test_results_are_found_by_known_entries(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "out.jsonl")
    first = ResultFile(path)
    results = [{"method": name, "options": {"by_length": True}, "score": number} for number, name in enumerate("ab")]
    for result in results:
        first.add(result)
    for stored in (first, ResultFile(path)):
        assert stored.find({"method": "b", "options": {"by_length": True}}) == results[1]
        assert stored.find({"method": "b", "options": None}) is None
        assert stored.find({"method": "b", "seed": 0}) is None
    another = ResultFile(path)
    another.add({"method": "c"})
    assert len(Path(path).read_text().splitlines()) == 3


def test_a_result_is_added_while_no_other_process_uses_the_file(tmp_path: Path) -> None:
    first, second = (ResultFile(str(tmp_path / "out.jsonl")) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".out.jsonl.lock"):
            adding = pool.submit(second.add, {"method": "a"})
            assert wait([adding], timeout=0.3).not_done
            assert not (tmp_path / "out.jsonl").exists()
        adding.result(timeout=30)
    assert first.find({"method": "a"}) == {"method": "a"}


@pytest.mark.parametrize("incomplete", ['{"method": "b", "sco', '{"method": "b"}'])
def test_an_incomplete_line_is_removed(incomplete: str, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"method": "a"}\n' + incomplete)
    stored = ResultFile(str(path))
    assert stored.find({"method": "b"}) is None
    stored.add({"method": "b", "score": 1.0})
    assert ResultFile(str(path)).find({"method": "b"}) == {"method": "b", "score": 1.0}


@pytest.mark.parametrize("text", ['{\n "task": "sst2"\n}\n', "[1, 2]\n3\n", "method,score\n"])
def test_other_files_raise_and_stay_unchanged(text: str, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"out='.*out\.json'"):
        ResultFile(str(path))
    assert path.read_text() == text


def test_a_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out='.*' is a folder"):
        ResultFile(str(tmp_path))


def test_without_a_file_results_are_kept_in_memory() -> None:
    stored = ResultFile(None)
    stored.add({"method": "a"})
    assert stored.find({"method": "a"}) == {"method": "a"}
