"""Read checkpoint files, and say plainly what is wrong with one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint: tensors and plain values only, no code.

    Args:
        path: The file.

    Returns:
        Its content, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, or no Lightning checkpoint.
    """
    checkpoint: dict[str, Any] = explained(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    return checkpoint


def explained(path: str | Path, read: Callable[[], Any]) -> Any:
    """Read a checkpoint, and explain why where that fails.

    Args:
        path: Its name, for the message.
        read: Reads it.

    Returns:
        What was read.

    Raises:
        ValueError: The file is cut off, or no Lightning checkpoint.
    """
    try:
        checkpoint = read()
    except Exception as error:  # an unpickler that is fed anything raises anything
        seek_failed = isinstance(error, OSError) and error.errno == errno.EINVAL  # to before a cut-off file's beginning
        if isinstance(error, (OSError, MemoryError, ImportError)) and not seek_failed:
            raise
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise ValueError(
                f"{str(path)!r} holds more than tensors and plain values, such as a hyperparameter that is an object "
                "of some class. Save plain values (str(path) for a Path); or, for a file that you trust, pass "
                f"weights_only=False to fit, validate, ... Torch says: {shorten(str(error), 300)}"
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{str(path)!r} cannot be read as a checkpoint: it is cut off, as after a crash during writing, or no "
            f"checkpoint at all ({first}). Go on from an earlier one{_others(Path(path))}."
        ) from error
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        found = ", ".join(map(str, list(checkpoint)[:5])) if isinstance(checkpoint, Mapping) else type(checkpoint)
        raise ValueError(
            f"{str(path)!r} is not a Lightning checkpoint: it has no 'state_dict', only {found}; give one that "
            "Lightning saved."
        )
    return checkpoint


def kept_scores(states: Mapping[str, Any], path: str | Path) -> dict[str, float]:
    """Return the scores for which a checkpoint was kept, by what was monitored.

    A checkpoint that was kept as the last one, or renamed since, remembers the scores of others only, and has none.

    Args:
        states: What its callbacks stored.
        path: Its file.
    """
    name, scores = Path(path).resolve().name, {}
    for state in states.values():
        if isinstance(state, Mapping) and state.get("monitor"):
            for kept, score in (state.get("best_k_models") or {}).items():
                if Path(str(kept)).name == name:
                    scores[str(state["monitor"])] = float(score)
    return scores


def _others(path: Path) -> str:
    """Name the checkpoints that lie beside one, newest first."""
    if not path.parent.is_dir():
        return ""
    found = [other for other in path.parent.glob(f"*{path.suffix}") if other.is_file() and other.name != path.name]
    found.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    return f"; beside it there are {', '.join(other.name for other in found[:5])}" if found else ""
