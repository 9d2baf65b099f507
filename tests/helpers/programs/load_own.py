"""Load an exported folder of a user's own encoder in a new process: python load_own.py FOLDER BATCH PICKLE."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

import pgb_lightning  # noqa: F401

folder, batch, pickled = map(Path, sys.argv[1:])
try:
    AutoModelForSequenceClassification.from_pretrained(folder)
except ValueError as error:
    print(str(error).replace("\n", " "))

import helpers.own_encoder  # noqa: E402, F401

model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
encoder = AutoModel.from_pretrained(folder)
inputs = torch.load(batch)
with torch.no_grad():
    print(model(**inputs).logits.tolist())
    print(pickle.loads(pickled.read_bytes())(**inputs).logits.tolist())
print(type(model).__name__, type(encoder).__name__, type(encoder.config).__name__)
