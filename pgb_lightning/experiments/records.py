"""Results in JSON-lines files: one result per line, appended as they are measured, and reused by later runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

Result = dict[str, Any]


def read_results(name: str, path: str | Path, needed: Collection[str] = ()) -> list[Result]:
    """Read the results of a file. The file may be in use: an incomplete last line is ignored.

    Args:
        name: The setting that names the file, for error messages.
        path: The file.
        needed: Keys that every result must have.

    Raises:
        ValueError: If the file contains anything else, or a result lacks a key.
    """
    results = _parse(name, path, Path(path).read_text())
    if missing := [key for result in results for key in needed if key not in result]:
        raise ValueError(f"{name}={str(path)!r} contains a result without {missing[0]!r}. Measure it again.")
    return results


def check_same_settings(what: str, results: Sequence[Result], names: Iterable[str]) -> None:
    """Check that results have the same settings, since others must not be averaged.

    Args:
        what: Description of the results, for the message.
        results: The results.
        names: Names of the settings; a result without one has ``None``.

    Raises:
        ValueError: If they have not.
    """
    for name in names:
        values = dict.fromkeys(json.dumps(result.get(name)) for result in results)
        if len(values) > 1:
            raise ValueError(
                f"files contain results of {what} with different settings: {name} is {' and '.join(values)}. Pass "
                "results of one of them only."
            )


class ResultFile:
    """Results in a file that several processes may share; without a file, results in memory.

    Each result is one line, appended under a lock. Results that other processes have added are also found. An
    incomplete last line from an interrupted run is removed.

    Args:
        path: The file; it is created with its folder if it does not exist.

    Raises:
        ValueError: If the path is a folder, or the file contains anything else.
    """

    def __init__(self, path: str | None) -> None:
        self.path = None if path is None else Path(path)
        self._results: list[Result] = []
        if self.path is None:
            return
        if self.path.is_dir():
            raise ValueError(f"out={path!r} is a folder. Pass a file, such as results.jsonl in it.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not self.path.is_file():
                return
            text = self.path.read_text()
            _parse("out", self.path, text)  # raises, and leaves the file as it is, if it contains anything else
            if (complete := _complete_lines(text)) != text:
                self.path.write_text(complete)

    def all(self) -> list[Result]:
        """Return all results, including those that other processes have added."""
        if self.path is None or not self.path.is_file():
            return list(self._results)
        with self._locked():
            return read_results("out", self.path)

    def find(self, known: Result) -> Result | None:
        """Return the first result that contains all given entries, if any."""
        return next((result for result in self.all() if known.items() <= result.items()), None)

    def add(self, result: Result) -> None:
        """Append a result."""
        if self.path is None:
            self._results.append(result)
            return
        with self._locked(), self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")

    def _locked(self) -> AbstractContextManager[object]:
        """Return a lock that one process holds at a time."""
        return nullcontext() if self.path is None else FileLock(self.path.with_name(f".{self.path.name}.lock"))


def _parse(name: str, path: str | Path, text: str) -> list[Result]:
    try:
        return [dict(json.loads(line)) for line in _complete_lines(text).splitlines()]
    except (ValueError, TypeError):
        raise ValueError(
            f"{name}={str(path)!r} must contain one JSON result per line. Pass another file, or move this one away."
        ) from None


def _complete_lines(text: str) -> str:
    """Return the text without an incomplete last line."""
    return text[: text.rfind("\n") + 1]
