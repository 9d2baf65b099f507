"""Check that the weights loaded from a folder match the structure that its configuration records."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.surgery.from_state_dict import StructureError
from pgb_lightning.surgery.record import dense_encoder, recorded_absent

REMEDY = "Export the model again, or undo the edits to this folder."


def check_loaded(model: PreTrainedModel, info: dict[str, Any], name: Any, lenient: bool) -> None:
    """Check that every tensor of the encoder was loaded. Only a head, and modules that it adds, may be new.

    Args:
        model: The loaded model.
        info: The loading info of transformers.
        name: The folder, for messages.
        lenient: Whether a head may have another shape than the stored one.

    Raises:
        StructureError: If a tensor of the encoder is missing, unexpected or of the wrong shape.
        RuntimeError: If a tensor of the head has the wrong shape.
    """
    encoder = find_encoder(model)
    where = f"{str(name)!r}: config.json and the weights disagree"
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        shapes = f"{key} has shape {tuple(stored)}, but"
        if _path_in(encoder, key) is not None:
            raise StructureError(f"{where}: {shapes} config.json records {tuple(wanted)}. {REMEDY}")
        if not lenient:
            raise RuntimeError(
                f"{str(name)!r}: {shapes} the model expects {tuple(wanted)}. Pass ignore_mismatched_sizes=True to "
                "initialize it randomly."
            )
    missing = [key for key in info["missing_keys"] if not _may_be_missing(encoder, key)]
    unexpected = [key for key in info["unexpected_keys"] if not _may_be_left_over(encoder, key)]
    for found, problem in ((sorted(missing), "is missing"), (sorted(unexpected), "is not in config.json")):
        if found:
            count = f"{len(found)} such tensor{'s' if len(found) > 1 else ''}"
            raise StructureError(f"{where}: {found[0]} {problem} ({count}). {REMEDY}")
    for key, module in model.named_modules():
        if isinstance(module, GroupedLinear):
            _check_indices(module, f"an index of {key}", where)


def _path_in(encoder: Encoder, key: str) -> str | None:
    """Return the path of a tensor in the encoder, or ``None`` if it belongs to a head.

    In a folder with the encoder alone, names lack the encoder's prefix in a model with a head.
    """
    path = key.removeprefix(f"{encoder.name}.")
    first = path.partition(".")[0]
    is_inside = path != key or not encoder.name
    return path if hasattr(encoder.model, first) and (is_inside or not hasattr(encoder.root, first)) else None


def _may_be_missing(encoder: Encoder, key: str) -> bool:
    """Return whether a tensor may be new: it belongs to a head, or to a module that the stored encoder did not have.

    The record lists modules of the encoder's class that the encoder lacked. Modules that its class does not have, such
    as GTE's pooler, were added by the head.
    """
    path = _path_in(encoder, key)
    if path is None or any(f"{path}.".startswith(f"{absent}.") for absent in recorded_absent(encoder.model.config)):
        return True
    return getattr(dense_encoder(encoder).model, path.partition(".")[0], None) is None


def _may_be_left_over(encoder: Encoder, key: str) -> bool:
    """Return whether a stored tensor may be unused: it belongs to a head, or to a module that the model lacks."""
    path = _path_in(encoder, key)
    if path is None:
        return True
    owner: Any = encoder.model
    for name in path.split(".")[:-1]:
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
        if not isinstance(owner, nn.Module):
            return owner is None  # such as the pooler
    return False


def _check_indices(layer: GroupedLinear, what: str, where: str) -> None:
    """Check that the positions of a layer's blocks are distinct and within its matrix."""
    for index, size in ((layer.input_index, layer.in_features), (layer.output_index, layer.out_features)):
        if index.is_meta:
            continue
        positions = index.flatten().to("cpu", torch.long)
        if not 0 <= int(positions.min()) <= int(positions.max()) < size:
            raise StructureError(f"{where}: {what} is out of range. {REMEDY}")
        if int(positions.bincount().max()) > 1:
            raise StructureError(f"{where}: {what} has a position twice. {REMEDY}")
