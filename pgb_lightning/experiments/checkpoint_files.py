"""Checkpoint files as arguments of the experiments: their seeds, tokenizer and identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pgb_lightning.checkpoints import load_checkpoint


def pair_with_seeds(ckpt_path: Sequence[str] | str, seed: Sequence[int] | int) -> list[tuple[str, int]]:
    """Return each checkpoint file with its seed.

    Args:
        ckpt_path: A file, or several.
        seed: One number for all files, or one per file.

    Raises:
        ValueError: If a file does not exist, or the number of seeds does not match.
    """
    paths = [ckpt_path] if isinstance(ckpt_path, str) else list(ckpt_path)
    if not paths or not all(Path(path).is_file() for path in paths):
        raise ValueError(f"ckpt_path={paths} must be an existing checkpoint file, or a list of them.")
    seeds = [seed] * len(paths) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(paths):
        raise ValueError(f"seed={seeds} must be one number, or one per checkpoint, of which there are {len(paths)}.")
    return list(zip(paths, seeds, strict=True))


def require_file(ckpt_path: str) -> None:
    """Check that a checkpoint file exists.

    Raises:
        ValueError: If it does not.
    """
    if not Path(ckpt_path).is_file():
        raise ValueError(f"ckpt_path={ckpt_path!r} does not exist. Use an existing checkpoint file.")


def find_tokenizer(ckpt_path: str) -> str:
    """Return the model name or path of a checkpoint, from which its tokenizer is loaded."""
    return str(load_checkpoint(ckpt_path)["hyper_parameters"]["model_name_or_path"])


def hash_file(path: str) -> str:
    """Return a hash of a file's content, which identifies a checkpoint wherever it is: 16 hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
