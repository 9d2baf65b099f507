"""The dense model as the teacher of a pruned one."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.model_calls import Call, record_calls


class Teacher:
    """A frozen dense model that runs on the inputs of a student. It is not a submodule of any module.

    :attr:`fingerprint`, a hash of all weights with 16 hexadecimal digits, identifies the teacher in a resumed run.

    Args:
        model: The model. It is frozen and switched to eval mode.
        encoder: The attribute path of the encoder, if the model contains several.
    """

    def __init__(self, model: PreTrainedModel, encoder: str | None = None) -> None:
        model.train(False).requires_grad_(False)
        self.model = model
        self.encoder = encoder
        self.fingerprint = hash_weights(model)

    @torch.no_grad()
    def run(self, call: Call, encoder_only: bool = False) -> Call:
        """Run the teacher on the inputs of a call.

        Args:
            call: The call of the student.
            encoder_only: Whether it is a call of the encoder instead of the whole model.
        """
        called = self.called(encoder_only)
        with record_calls(called, None if encoder_only else self.encoder) as calls:
            called(*call.args, **call.kwargs)
        return calls[0]

    def called(self, encoder_only: bool) -> PreTrainedModel:
        """Return the model that :meth:`run` calls: the encoder or the whole model."""
        return find_encoder(self.model, self.encoder).model if encoder_only else self.model


def hash_weights(model: nn.Module) -> str:
    """Return a hash of all weights of a model, with 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
