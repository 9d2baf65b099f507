"""Complete a change of an encoder's structure after its layers were replaced."""

from __future__ import annotations

import torch

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.wrappers import replace_module
from pgb_lightning.layers.dropped import DroppedTable
from pgb_lightning.surgery.attentions import attention_is_dropped, keep_attention_entries, remove_attention_hook
from pgb_lightning.surgery.heads import reads_positions
from pgb_lightning.surgery.saving import record_when_saved, save_as_usual


def finish(encoder: Encoder) -> None:
    """Complete a change of an encoder's structure, in place.

    Position tables that are no longer used are removed or frozen, ``attentions`` gets an entry for each layer, and the
    models that hold the encoder save its structure in ``save_pretrained``.

    Args:
        encoder: The encoder, with all of its new layers. Calling it again has no effect.
    """
    table = encoder.family.attention_table
    if table is not None and all(attention_is_dropped(encoder)):
        for model in encoder.owners:
            replace_module(model.get_submodule(table), DroppedTable(), encoder.roots)
    if encoder.family.position_modules and not reads_positions(encoder):
        for model in encoder.owners:
            for path in encoder.family.position_modules:
                owner, _, name = path.rpartition(".")
                if hasattr(model.get_submodule(owner), name):  # depends on the configuration
                    model.get_submodule(path).requires_grad_(False)
    keep_attention_entries(encoder)
    record_when_saved(encoder)
    torch.clear_autocast_cache()  # Autocast does not notice weights that changed in place, as those of fused layers.


@torch.no_grad()
def undo_finish(encoder: Encoder, dense: Encoder) -> None:
    """Undo :func:`finish`, in place. Tables that were removed are filled with zeros.

    Args:
        encoder: The encoder, with dense layers.
        dense: A dense encoder of the same class.
    """
    table = encoder.family.attention_table
    for model in encoder.owners if table is not None else []:
        old, new = model.get_submodule(str(table)), dense.model.get_submodule(str(table))
        if isinstance(old, DroppedTable):
            like = next(model.parameters())
            zeros = {"weight": like.new_zeros(new.get_parameter("weight").shape)}
            new.load_state_dict(zeros, assign=True)
            replace_module(old, new, encoder.roots)
    remove_attention_hook(encoder)
    save_as_usual(encoder)
