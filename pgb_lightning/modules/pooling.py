"""Pooling of token states to one embedding per text, as configured in a sentence-transformers folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from pgb_lightning.modules.sentence_files import TEXT_FILE, read_json, read_parts, read_sentence_files, write_json

PoolingMode = Literal["mean", "cls", "max"]

#: The keys of the modes in ``1_Pooling/config.json``.
MODE_KEYS: dict[PoolingMode, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
}

POOLING_FILE = "1_Pooling/config.json"


@dataclass(frozen=True)
class Pooling:
    """How token states are pooled to an embedding.

    Args:
        mode: The mean of the states of all tokens, the state of the first token, or the maximum over tokens.
        normalize: Whether the embedding is scaled to length 1.

    Raises:
        MisconfigurationException: If the mode is unknown.

    Example:
        >>> states, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> Pooling("mean").apply(states, mask)
        tensor([[2.]])
    """

    mode: PoolingMode = "mean"
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(PoolingMode):
            raise MisconfigurationException(
                f"pooling={self.mode!r} is unknown. Use {', '.join(map(repr, get_args(PoolingMode)))}."
            )

    def apply(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return one embedding for each text.

        Args:
            states: Hidden states of shape (texts, tokens, width).
            mask: 1 for tokens and 0 for padding, of shape (texts, tokens).

        Returns:
            Embeddings of shape (texts, width).
        """
        kept = mask.unsqueeze(-1).to(states.dtype)
        if self.mode == "mean":
            pooled = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        elif self.mode == "cls":
            pooled = states[:, 0]
        else:
            pooled = states.masked_fill(kept == 0, torch.finfo(states.dtype).min).amax(1)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_pooling(model_name_or_path: str) -> Pooling | None:
    """Return the pooling of a model of sentence-transformers, or ``None`` if it is not one.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Raises:
        MisconfigurationException: If the model has other parts, such as a dense layer, or another kind of pooling.

    Example:
        >>> read_pooling("minilm-l6")
        Pooling(mode='mean', normalize=True)
    """
    parts, kinds = read_parts(model_name_or_path)
    if not parts:
        return None
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise MisconfigurationException(
            f"model_name_or_path={model_name_or_path!r} has the parts {', '.join(kinds)} in modules.json. Supported "
            "are Transformer, Pooling and Normalize. Use a LightningModule of your own with PGBCallback for others."
        )
    config: dict[str, Any] = read_json(model_name_or_path, f"{parts[1]['path']}/config.json") or {}
    modes = [mode for mode, key in MODE_KEYS.items() if config.get(key)]
    modes += [mode for mode in MODE_KEYS if config.get("pooling_mode") == mode]
    if len(modes) != 1 or any(value is True for key, value in config.items() if _is_other_mode(key)):
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode") and value]
        raise MisconfigurationException(
            f"model_name_or_path={model_name_or_path!r} is pooled by {', '.join(chosen) or 'nothing'}. Supported is "
            f"one of {', '.join(MODE_KEYS.values())}."
        )
    return Pooling(mode=modes[0], normalize="Normalize" in kinds)


def read_settings(model_name_or_path: str) -> dict[str, Any]:
    """Return the settings of a model of sentence-transformers besides those of its pooling, by the name of their file.

    Args:
        model_name_or_path: The alias, a name on the Hub, or a local folder.

    Returns:
        The prompts, the similarity, and how texts are read; empty if the model is not one of sentence-transformers.
    """
    parts, kinds = read_parts(model_name_or_path)
    if "Pooling" not in kinds:
        return {}
    pooling = read_json(model_name_or_path, f"{parts[kinds.index('Pooling')]['path']}/config.json") or {}
    with_prompt = {POOLING_FILE: {"include_prompt": pooling["include_prompt"]}} if "include_prompt" in pooling else {}
    return with_prompt | read_sentence_files(model_name_or_path)


def write_pooling(
    folder: Path, pooling: Pooling, width: int, max_length: int, settings: Mapping[str, Any] | None = None
) -> None:
    """Write the files with which sentence-transformers loads a folder with its pooling.

    Args:
        folder: A Hugging Face folder.
        pooling: The pooling.
        width: Width of the embeddings.
        max_length: Texts are truncated to this many tokens, if there are no ``settings``.
        settings: The result of :func:`read_settings` for the dense model.
    """
    names = {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if pooling.normalize else {})}
    parts = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(names.items())
    ]
    modes = {key: mode == pooling.mode for mode, key in MODE_KEYS.items()}
    files: dict[str, Any] = dict(settings or {TEXT_FILE: {"max_seq_length": max_length, "do_lower_case": False}})
    files["modules.json"] = parts
    files[POOLING_FILE] = {"word_embedding_dimension": width, **modes, **files.get(POOLING_FILE, {})}
    write_json(folder, files)
    if pooling.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)


def _is_other_mode(key: str) -> bool:
    return key.startswith("pooling_mode_") and key not in MODE_KEYS.values()
