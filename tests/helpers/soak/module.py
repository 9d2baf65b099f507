"""A user's module, made from random settings."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from helpers.plans import randomize_vectors
from helpers.soak.data import NUM_LABELS, Row
from helpers.soak.settings import Settings
from helpers.tiny import PADDING, VOCABULARY
from pgb_lightning import follow_state_dict
from pgb_lightning.encoders.find import find_encoders

CLASSES = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification", "qa": "ForQuestionAnswering"}
PREFIXES = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra", "distilbert": "DistilBert", "mpnet": "MPNet"}


def make_model(settings: Settings, head: bool) -> PreTrainedModel:
    """Build a tiny transformers model with or without a head."""
    model = settings.model
    prefix = PREFIXES[model["model_type"]]
    names = {"hidden_size": "hidden", "num_hidden_layers": "layers", "num_attention_heads": "heads"}
    sizes = {name: model[key] for name, key in names.items()}
    dropouts = {"hidden_dropout_prob": model["dropout"], "attention_probs_dropout_prob": model["dropout"]}
    if model["model_type"] == "distilbert":
        sizes = {"dim": model["hidden"], "n_layers": model["layers"], "n_heads": model["heads"]}
        sizes["hidden_dim"] = model["neurons"]
        dropouts = {"dropout": model["dropout"], "attention_dropout": model["dropout"]}
    else:
        sizes["intermediate_size"] = model["neurons"]
    if model["model_type"] == "electra":
        sizes["embedding_size"] = model["hidden"]
    task = model["task"]
    problem = {"regression": "regression", "multilabel": "multi_label_classification"}.get(task)
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=VOCABULARY,
        pad_token_id=PADDING,
        max_position_embeddings=40,
        initializer_range=0.2,
        num_labels=NUM_LABELS[task],
        problem_type=problem if settings.data["labels_inside"] else None,
        **sizes,
        **dropouts,
    )
    config._attn_implementation = model["attention"]
    if head:
        return getattr(transformers, prefix + CLASSES.get(task, "ForSequenceClassification"))(config)  # type: ignore[no-any-return]
    has_pooler = model["model_type"] in ("bert", "roberta", "mpnet")
    options = {"add_pooling_layer": model["pooler"]} if has_pooler else {}
    return getattr(transformers, f"{prefix}Model")(config, **options)  # type: ignore[no-any-return]


class SoakModule(L.LightningModule):
    """A module whose architecture, loss and names follow the settings.

    Args:
        settings: The settings.
        seed: Determines the weights.
    """

    def __init__(self, settings: Settings, seed: int = 0) -> None:
        super().__init__()
        if settings.model["follows"]:
            follow_state_dict(self)
        self.settings = settings
        model = settings.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + seed)
            net: Any = make_model(settings, head=not model["outside"])
            base = next(encoder.model for encoder in find_encoders(net))
            if model["alias"] == "before":
                self.backbone = base
            if model["second"] == "frozen":
                self.teacher = make_model(settings, head=False).eval().requires_grad_(False)
            self.net = torch.compile(net, backend="eager") if model["compiled"] else net
            if model["second"] == "tower":
                self.tower = make_model(settings, head=False)
                self.tower_head = nn.Linear(model["hidden"], 1)
            if model["alias"] == "after":
                self.backbone = base
            if model["alias"] == "towers":
                self.query = self.document = self.net
            if model["alias"] == "layers":
                self.blocks = nn.ModuleList(find_encoders(net)[0].layers)
            outputs = NUM_LABELS[model["task"]]
            self.head = nn.Linear(model["hidden"], outputs) if model["outside"] else nn.Identity()
            self.bias = nn.Parameter(torch.zeros(()))
            randomize_vectors(self, seed)
        self.net.train(model["mode"] == "train")
        self.hooked = 0
        if model["hooks"]:
            find_encoders(net)[0].layers[0].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.hooked += 1

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return getattr(self.net, "_orig_mod", self.net)  # type: ignore[no-any-return]

    def forward(self, inputs: Row) -> Tensor:
        """Return the outputs of the task."""
        output = self.net(**inputs)
        if self.settings.model["outside"]:
            hidden = output.last_hidden_state
            per_token = self.settings.model["task"] in ("token", "qa")
            logits = self.head(hidden if per_token else hidden[:, 0])
        elif self.settings.model["task"] == "qa":
            logits = torch.stack((output.start_logits, output.end_logits), -1)
        else:
            logits = output.logits
        if self.settings.model["second"] == "tower":
            scores = self.tower_head(self.tower(**inputs).last_hidden_state)
            per_token = self.settings.model["task"] in ("token", "qa")
            logits = logits + (scores if per_token else scores[:, 0])
        return logits + self.bias

    def task_loss(self, batch: Row) -> Tensor:
        """Return the mean loss of a batch."""
        task, labels = self.settings.model["task"], batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.settings.data["labels_inside"] and self.settings.data["loss"] != "saturated":
            given = {"labels": labels}
            if task == "qa":
                given = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
            if task in ("regression", "multilabel"):
                given = {"labels": labels.to(self.bias.dtype)}
            return self.net(**inputs, **given).loss + 0 * self.bias  # type: ignore[no-any-return]
        logits = self(inputs)
        if self.settings.data["loss"] == "saturated":
            target = logits.detach().clone()
            return F.mse_loss(logits, target)
        if task in ("sequence", "token"):
            return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        if task == "qa":
            return (F.cross_entropy(logits[..., 0], labels[:, 0]) + F.cross_entropy(logits[..., 1], labels[:, 1])) / 2
        if task == "regression":
            return F.mse_loss(logits, labels.to(logits.dtype))
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def loss(self, batch: Any, index: int) -> Tensor | None:
        """Return the loss of a batch or of several, with the fault that the settings ask for."""
        kind = self.settings.data["loss"]
        if kind == "all_none" or (kind == "some_none" and index % 2):
            return None
        if kind == "unused":
            return self.bias.square()
        parts = batch if isinstance(batch, (list, tuple)) else [batch]
        if isinstance(batch, dict) and "input_ids" not in batch:
            parts = list(batch.values())
        value = torch.stack([self.task_loss(part) for part in parts if part is not None]).mean()
        if kind == "zero" or (kind == "half_zero" and index % 2):
            value = F.relu(value - 1e6)
        if kind == "nan" and index == 1:
            value = value * float("nan")
        return value

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        value = self.loss(batch, batch_idx)
        if value is not None:
            self.log("train_loss", value)
        return {"loss": value} if self.settings.data["returns_dict"] and value is not None else value

    def validation_step(self, batch: Row, batch_idx: int) -> None:
        value = self.task_loss(batch).detach()
        self.log("val_loss", value)
        self.log("val_score", -value)

    def predict_step(self, batch: Row, batch_idx: int) -> Tensor:
        return self({name: value for name, value in batch.items() if name != "labels"})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        chosen = getattr(torch.optim, self.settings.trainer["optimizer"])
        return chosen((p for p in self.parameters() if p.requires_grad), lr=1e-3)  # type: ignore[no-any-return]
