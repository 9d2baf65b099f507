"""Several PGBCallbacks in one Trainer, one for each encoder."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from pgb_lightning.encoders.find import find_encoder, find_encoders


def is_built(module: pl.LightningModule, name: str | None) -> bool:
    """Return whether a module's encoder is built, or will not be built later.

    Callbacks are set up before the module, which may build its network in its own hooks.

    Args:
        module: The module.
        name: Attribute path of the encoder; ``None`` for any.
    """
    if not any(is_overridden(hook, module) for hook in ("setup", "configure_model")):
        return True
    if name is None:
        return bool(find_encoders(module))
    try:
        return module.get_submodule(name) is not None
    except AttributeError:
        return False


def check_encoders(module: nn.Module, names: Sequence[str | None]) -> None:
    """Check that the PGBCallbacks of a Trainer prune different encoders.

    Args:
        module: The module.
        names: The setting ``encoder`` of each callback.

    Raises:
        ValueError: If there is no such encoder, or two of them are the same, possibly under two names.
    """
    seen: dict[int, str | None] = {}  # the callback's setting by the identity of each layer
    for name in names:
        encoder = find_encoder(module, name)
        layers = list(map(id, encoder.layers))
        others = [seen[layer] for layer in layers if layer in seen]
        if others:
            raise ValueError(
                f"encoder={others[0]!r} and encoder={name!r} have the same layers, those of the encoder at "
                f"{encoder.where}, which is pruned once in a fit. Use one PGBCallback for each encoder."
            )
        seen |= dict.fromkeys(layers, name)
