"""Read checkpoint files, with clear errors for damaged or unsuitable ones."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a Lightning checkpoint to the CPU with ``weights_only=True``.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is truncated or not a Lightning checkpoint.
    """
    checkpoint: dict[str, Any] = load_checked(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    return checkpoint


def load_checked(path: str | Path, load: Callable[[], Any]) -> Any:
    """Call a function that loads a checkpoint, check the result, and raise clear errors.

    Args:
        path: The name of the checkpoint, for the message.
        load: The function.

    Returns:
        The loaded checkpoint.

    Raises:
        ValueError: If the file is truncated or not a Lightning checkpoint.
    """
    try:
        checkpoint = load()
    except Exception as error:  # unpickling an arbitrary file can raise any exception
        # In a truncated file, torch may seek to a position before its start.
        seek_failed = isinstance(error, OSError) and error.errno == errno.EINVAL
        if isinstance(error, (OSError, MemoryError, ImportError)) and not seek_failed:
            raise
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise ValueError(
                f"{str(path)!r} contains more than tensors and plain values, for example a hyperparameter that is a "
                "custom object. Save plain values (str(path) for a Path). If you trust the file, you can pass "
                f"weights_only=False to fit, validate, test or predict. The error was: {shorten(str(error), 300)}"
            ) from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{str(path)!r} cannot be read: it is truncated, for example by a crash during writing, or it is not a "
            f"checkpoint ({first}). Use an earlier checkpoint{_list_others(Path(path))}."
        ) from error
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        is_mapping = isinstance(checkpoint, Mapping)
        found = ", ".join(map(str, list(checkpoint)[:5])) if is_mapping else f"a {type(checkpoint).__name__}"
        raise ValueError(
            f"{str(path)!r} is not a Lightning checkpoint: it has no 'state_dict', only {found}. Pass a checkpoint "
            "that Lightning saved."
        )
    return checkpoint


def state_key(name: str, encoder: str | None) -> str:
    """Return the key under which a callback's state is stored in a checkpoint.

    Args:
        name: The class name of the callback.
        encoder: The callback's ``encoder`` setting. Without it, the key is Lightning's default.

    Example:
        >>> state_key("PGBCallback", None), state_key("PGBCallback", "query.bert")
        ('PGBCallback', 'PGBCallback[encoder=query.bert]')
    """
    return name if encoder is None else f"{name}[encoder={encoder}]"


def find_states(states: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    """Return the states of all callbacks of a class in a checkpoint, by key.

    Args:
        states: The callback states of the checkpoint.
        name: The class name.
    """
    return {
        key: state
        for key, state in states.items()
        if isinstance(state, Mapping) and (key == name or str(key).startswith(f"{name}[encoder="))
    }


def get_monitored_scores(states: Mapping[str, Any], path: str | Path) -> dict[str, float]:
    """Return the scores by which ``ModelCheckpoint`` callbacks kept a checkpoint, by monitored metric.

    The result is empty if the checkpoint was kept as the last one or was renamed, because its callback states then only
    have the scores of other files; if the checkpoint was moved and several folders have a file of this name; and if
    scores are NaN or infinite.

    Args:
        states: The callback states of the checkpoint.
        path: The file.
    """
    path = Path(path).resolve()
    kept = [
        (Path(str(file)).resolve(), str(state["monitor"]), float(score))
        for state in states.values()
        if isinstance(state, Mapping) and state.get("monitor")
        for file, score in (state.get("best_k_models") or {}).items()
    ]
    files = {file for file, _, _ in kept if file.name == path.name}
    if len(files) != 1:
        files &= {path}
    return {monitor: score for file, monitor, score in kept if file in files and math.isfinite(score)}


def _list_others(path: Path) -> str:
    """Return the names of up to five other checkpoints in the same folder, newest first, for a message."""
    if not path.parent.is_dir():
        return ""
    found = [other for other in path.parent.glob(f"*{path.suffix}") if other.is_file() and other.name != path.name]
    found.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    return f" from the same folder: {', '.join(other.name for other in found[:5])}" if found else ""
