"""The matrix kinds of BERT's layers, which most tests use."""

from pgb_lightning.encoders.bert import BERT

MATRICES = BERT.matrices
SUBLAYERS = BERT.sublayers
