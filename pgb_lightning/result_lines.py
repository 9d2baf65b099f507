"""Results in a file, one JSON object a line: added as they come, and found again by a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]


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
        text = self.path.read_text() if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        try:
            self._results = [dict(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError):
            raise ValueError(
                f"out={path!r} holds something else than one result a line: name another file, or move it away."
            ) from None
        if whole != text:
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
