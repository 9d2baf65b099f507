"""Attention weights of a pruned encoder: one entry for each run of a layer, as in the dense model."""

from __future__ import annotations

from typing import Any

from pgb_lightning.encoders.base import Encoder, model_type_of
from pgb_lightning.encoders.families import FAMILIES
from pgb_lightning.layers.dropped import DroppedCore

#: Attribute of an encoder's model that holds the handle of its hook.
HANDLE = "pgb_attentions_hook"


def keep_attention_entries(encoder: Encoder) -> None:
    """Add ``None`` to the model's ``attentions`` for each layer whose attention was dropped.

    transformers collects attention weights only from modules that compute them. Without the added entries, indices in
    ``attentions`` would not be those of the layers.
    """
    if any(attention_is_dropped(encoder)):
        for model in encoder.owners:
            if HANDLE not in vars(model):
                # Runs before other hooks, so that they see all entries.
                vars(model)[HANDLE] = model.register_forward_hook(_add_entries, prepend=True, with_kwargs=True)


def remove_attention_hook(encoder: Encoder) -> None:
    """Undo :func:`keep_attention_entries`."""
    for model in encoder.owners:
        handle = vars(model).pop(HANDLE, None)
        if handle is not None:
            handle.remove()


def attention_is_dropped(encoder: Encoder) -> list[bool]:
    """Return for each layer whether its attention was dropped."""
    core = encoder.family.cores["attention"]
    return [isinstance(layer.get_submodule(core), DroppedCore) for layer in encoder.layers]


def _add_entries(model: Any, _: object, kwargs: dict[str, Any], output: Any) -> Any:
    """Complete the attention weights in the output of an encoder's model (a forward hook)."""
    requested = kwargs.get("output_attentions")
    requested = model.config.output_attentions if requested is None else requested
    if isinstance(output, tuple):
        # The requested outputs have no names here: hidden states are (B, S, d), attention weights (B, H, S, S).
        places = (n for n, part in enumerate(output) if isinstance(part, tuple) and (not part or _is_weights(part[0])))
        place = next(places, None)
        if place is None:  # not requested, or transformers 5.0 found no layer with attention
            added = _complete(model, ()) if requested else ()
            return (*output, added) if added else output
        return (*output[:place], _complete(model, output[place]), *output[place + 1 :])
    attentions = getattr(output, "attentions", None)
    if attentions is not None or (requested and hasattr(output, "attentions")):
        output.attentions = _complete(model, attentions or ()) or attentions
    return output


def _is_weights(part: Any) -> bool:
    return part is None or part.dim() == 4


def _complete(model: Any, attentions: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return attention weights with an entry for every run, given one for every run of a layer with attention."""
    encoder = Encoder("", model, FAMILIES[model_type_of(model)])
    by_layer = attention_is_dropped(encoder)
    dropped = [by_layer[layer] for layer in encoder.order]
    if len(attentions) != dropped.count(False):  # complete, or not computed, as with attn_implementation="sdpa"
        return attentions
    entries = iter(attentions)
    return tuple(None if is_dropped else next(entries) for is_dropped in dropped)
