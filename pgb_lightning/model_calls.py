"""Record the forward calls of a transformers model in any code: arguments, outputs, hidden states and masks."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.encoders.wrappers import names_of

#: Names of the outputs of transformers models that distillation compares.
LOGITS = ("logits", "start_logits", "end_logits")


@dataclass
class Call:
    """One forward call of a transformers model.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
        output: The output of the model.
        hidden: The hidden states after each layer, (B, S, d). If the encoder was called several times, its calls follow
            one after another.
        mask: The attention mask of the encoder's first call, (B, S), if one was given.
        masks: The attention mask of each entry of ``hidden``, if they differ.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    hidden: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = None
    masks: list[Tensor | None] = field(default_factory=list)

    def logits(self) -> dict[str, Tensor]:
        """Return the outputs to compare, by name; empty if the model has no head."""
        named = self.output if isinstance(self.output, Mapping) else {}
        return {name: named[name] for name in LOGITS if name in named}

    def has_gradients(self, logits_only: bool = False) -> bool:
        """Return whether the last hidden states or the logits require gradients."""
        outputs = list(self.logits().values()) if logits_only else self.hidden[-1:]
        return any(output.requires_grad for output in outputs)

    def is_valid(self) -> bool:
        """Return whether all outputs and hidden states are finite. Masked logits may be minus infinity."""
        finite = all(bool(each.isfinite().all()) for each in self.hidden)
        return finite and not any(bool((each.isnan() | (each == torch.inf)).any()) for each in self.logits().values())

    def after(self, layers: Collection[int], count: int) -> Call:
        """Return the call with only the hidden states after the given layers.

        Args:
            layers: Indices of runs of layers, in one call of the encoder.
            count: Number of runs of layers in one call of the encoder.
        """
        kept = [entry for entry in range(len(self.hidden)) if entry % count in layers]
        masks = [self.masks[entry] for entry in kept] if self.masks else []
        return replace(self, hidden=[self.hidden[entry] for entry in kept], masks=masks)

    def token_mask(self, like: Tensor, layer: int | None = None) -> Tensor:
        """Return a mask of shape (B, S), 1 for tokens and 0 for padding, with the dtype and device of ``like``.

        Args:
            like: A tensor of shape (B, S, ...).
            layer: The entry of ``hidden``; by default the mask of the encoder's first call is returned.
        """
        mask = self.masks[layer] if layer is not None and self.masks else self.mask
        if mask is None or mask.shape != like.shape[:2]:  # no mask, or a mask of another shape
            return torch.ones(like.shape[:2], dtype=like.dtype, device=like.device)
        return mask.to(like)


def mask_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the attention mask with which a model is called; ``None`` for a dictionary of masks by type of layer."""
    mask = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments.get("attention_mask")
    return mask if isinstance(mask, Tensor) else None


@contextmanager
def record_calls(model: PreTrainedModel, encoder: str | None = None) -> Iterator[list[Call]]:
    """Record the forward calls of a model while the context is active.

    Args:
        model: A transformers model that is, or contains, a supported encoder.
        encoder: The attribute path of the encoder, if the model contains several.

    Yields:
        The list to which each call is appended.
    """
    calls: list[Call] = []
    current, mask = Call(), None
    found = find_encoder(model, encoder)

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal current
        current = Call()

    def enter_encoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal mask
        mask = mask_argument(module, args, kwargs)
        if not current.hidden:
            current.mask = mask

    def leave_layer(module: nn.Module, args: Any, output: Any) -> None:
        current.hidden.append(output[0] if isinstance(output, tuple) else output)
        current.masks.append(mask)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        current.args, current.kwargs, current.output = args, kwargs, output
        calls.append(current)

    handles = [
        model.register_forward_pre_hook(enter),
        found.model.register_forward_pre_hook(enter_encoder, with_kwargs=True),
        # Hook the wrappers of layers, since the layers inside may be compiled or run again in the backward pass.
        *(layer.register_forward_hook(leave_layer) for layer in found.stack),
        model.register_forward_hook(leave, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def outermost_models(root: nn.Module, encoder: Encoder) -> dict[PreTrainedModel, str]:
    """Return the outermost transformers models that hold an encoder, each with the encoder's path in it.

    There are several if models with heads share the encoder.

    Args:
        root: The module in which to look for models.
        encoder: The encoder.
    """
    paths: dict[PreTrainedModel, str] = {}
    for model in root.modules():
        if isinstance(model, PreTrainedModel):
            for path in (path for owner in encoder.owners for path in names_of(owner, model)):
                paths.setdefault(model, path)
    return {
        model: path
        for model, path in paths.items()
        if not any(names_of(model, other) for other in paths if other is not model)
    }
