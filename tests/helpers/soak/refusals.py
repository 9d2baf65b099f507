"""Tell the errors of this package from faults."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

import pgb_lightning
from pgb_lightning import callbacks

FOLDERS = tuple(str(Path(package.__file__).resolve().parent) for package in (pgb_lightning, callbacks))
KINDS = (MisconfigurationException, ValueError, TypeError)
#: Every error of this package tells what to do.
REMEDY = re.compile(
    r"\b(use|pass|provide|set|add|remove|leave|call|load|return|build|start|prune|make|resume|create|choose|merge|check|undo|name|"
    r"lower|fine-tune|train)\b",
    re.IGNORECASE,
)


def raised_by_package(error: BaseException) -> bool:
    """Return whether an error was raised in the package's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and str(Path(frames[-1].filename).resolve()).startswith(FOLDERS)


def is_refusal(error: BaseException) -> bool:
    """Return whether an error is a deliberate one of this package.

    Callbacks re-raise every ``ValueError`` and ``TypeError`` with their name. If another library raised it, that is a
    fault. So is a ``training_step`` that fails in calibration, since those of the soak do not fail in training.
    """
    if not isinstance(error, KINDS) or "failed on calibration batch" in str(error):
        return False
    chain: list[BaseException] = [error]
    while isinstance(chain[-1].__cause__, KINDS):
        chain.append(chain[-1].__cause__)
    return all(map(raised_by_package, chain)) and REMEDY.search(str(error)) is not None


def subject(error: BaseException) -> str:
    """Return what an error is about: its text without values and numbers."""
    text = re.sub(r"'[^']*'|\b[\w.]*\d[\w.,%]*\b", "…", str(error).splitlines()[0])
    return text[:90]
