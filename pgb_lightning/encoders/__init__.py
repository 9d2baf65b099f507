"""Descriptions of how transformers encoders are built, with one file per family."""

from pgb_lightning.encoders.base import EXPORTED, Encoder
from pgb_lightning.encoders.families import FAMILIES, register
from pgb_lightning.encoders.family import EXPENDABLE, MATRICES, SUBLAYERS, Family, Sublayer
from pgb_lightning.encoders.find import find_encoder, find_encoders
from pgb_lightning.encoders.fingerprint import fingerprint
from pgb_lightning.encoders.wrappers import join_path

__all__ = [
    "EXPENDABLE",
    "EXPORTED",
    "FAMILIES",
    "MATRICES",
    "SUBLAYERS",
    "Encoder",
    "Family",
    "Sublayer",
    "find_encoder",
    "find_encoders",
    "fingerprint",
    "join_path",
    "register",
]
