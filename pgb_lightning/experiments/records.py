"""Results in a file, one JSON object a line: added as they come, and found again by a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def read_results(name: str, path: str | Path, needed: Collection[str] = ()) -> list[Result]:
    """Read the results of a file, which may be in use: a line that is not finished does not count.

    Args:
        name: What the file is called in an error: the setting that names it.
        path: The file.
        needed: Entries that every result must have.

    Raises:
        ValueError: It holds something else, or a result lacks an entry.
    """
    results = _parse(name, path, Path(path).read_text())
    if lacking := [entry for result in results for entry in needed if entry not in result]:
        raise ValueError(f"{name}={str(path)!r} holds a result without {lacking[0]!r}: measure it again.")
    return results


class ResultLines:
    """Keep results in a file that several runs may share; keep none without one.

    A line that an interrupted run left unfinished is cut off.

    Args:
        path: The file, made with its folder where it is not there.

    Raises:
        ValueError: It is a folder, or holds something else.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else Path(path)
        self._results: list[Result] = []
        if self.path is None:
            return
        if self.path.is_dir():
            raise ValueError(f"out={path!r} is a folder: name a file, such as results.jsonl in it.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            text = self.path.read_text()
            self._results = _parse("out", self.path, text)
            if (whole := _whole(text)) != text:
                self.path.write_text(whole)

    def find(self, known: Result) -> Result | None:
        """Look for a result of which some entries are known."""
        return next((result for result in self._results if known.items() <= result.items()), None)

    def add(self, result: Result) -> None:
        """Keep a result."""
        self._results.append(result)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(result) + "\n")


def _parse(name: str, path: str | Path, text: str) -> list[Result]:
    """Make results of a file's text."""
    try:
        return [dict(json.loads(line)) for line in _whole(text).splitlines()]
    except (ValueError, TypeError):
        raise ValueError(
            f"{name}={str(path)!r} holds something else than one result a line: name another file, or move it away."
        ) from None


def _whole(text: str) -> str:
    """Cut off a line that is not finished."""
    return text[: text.rfind("\n") + 1]
