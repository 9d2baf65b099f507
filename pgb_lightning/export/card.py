"""The model card of an exported model: what it is, how small and how good, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.dense_twin import make_dense_model

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from pgb_lightning.plan import PruningPlan

#: The Hub's names of what a head is for.
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card says beyond what the model shows by itself.

    Args:
        base_model: Name on the Hub of the model that was fine-tuned; a local folder is not named.
        task: What it was fine-tuned for, such as ``"sst2"``.
        scores: Scores by name, such as ``{"accuracy": 87.4, "accuracy of the dense model": 87.0}``.
        latency: Milliseconds a call by name, such as ``{"pruned, batch 1": 10.4}``.
    """

    base_model: str | None = None
    task: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)


def make_card(
    model: PreTrainedModel, kind: str, facts: CardFacts | None = None, plan: PruningPlan | None = None
) -> ModelCard:
    """Write a model card.

    Args:
        model: The model, plain or exported, grouped or dense.
        kind: What lies in the folder: "huggingface", "dense", or an ONNX file, by its name.
        facts: What the model does not show.
        plan: The plan it was pruned by, if known.

    Returns:
        The card; ``card.save(path)`` writes it.
    """
    from huggingface_hub import ModelCard, ModelCardData  # takes long, and only this function needs it

    facts = facts or CardFacts()
    name, is_onnx = type(model).__name__, kind.endswith(".onnx")
    pipeline = next((task for end, task in PIPELINES.items() if name.endswith(end)), "feature-extraction")
    base = _hub_name(facts.base_model)
    data = ModelCardData(
        base_model=base,
        library_name="transformers.js" if is_onnx else "transformers",
        pipeline_tag=pipeline,
        tags=["pgb-lightning", "pruned", *(["onnx"] if is_onnx else [])],
    )
    task = f"on {facts.task}," if facts.task else ""
    title = " ".join(filter(None, (base or find_encoder(model).model_type, task, "pruned")))
    parts = [f"# {title}", _summary(model, plan), *_tables(facts), f"## Use it\n\n{_usage(kind, pipeline, name)}"]
    return ModelCard("\n\n".join([f"---\n{data.to_yaml()}\n---", *parts]) + "\n")


def _summary(model: PreTrainedModel, plan: PruningPlan | None) -> str:
    """Say what is left of the encoder."""
    encoder = find_encoder(model)
    with torch.device("meta"):
        total = encoder_cost(find_encoder(make_dense_model(model))).parameters
    if not is_pruned(encoder):
        return f"A dense encoder of {total:,} weights (Q, K, V, O, W1, W2 of {len(encoder.layers)} layers)."
    kept = encoder_cost(encoder).parameters
    rows = {
        "weights of the encoder (Q, K, V, O, W1, W2)": f"{kept:,} of {total:,}",
        "removed": f"{100 * (1 - kept / total):.1f} %",
        "parameters of the whole model": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }
    if plan is not None:
        asked = {name: plan.config[name] for name in ("pruning_ratio", "permutation") if name in plan.config}
        rows |= {f"{name} of the plan": str(value) for name, value in asked.items()}
    return (
        "Pruned in one shot by weight grouping and permutation (PGB, JAIR 85:24, 2026) with "
        "pgb-lightning.\n\n" + _table("encoder", rows)
    )


def _tables(facts: CardFacts) -> list[str]:
    """Show scores and latency, where they are known."""
    parts = []
    if facts.scores:
        parts.append("## Scores\n\n" + _table("score", {name: f"{value:.4g}" for name, value in facts.scores.items()}))
    if facts.latency:
        shown = {name: f"{value:.4g}" for name, value in facts.latency.items()}
        parts.append("## Speed\n\n" + _table("milliseconds a call", shown))
    return parts


def _table(title: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _usage(kind: str, pipeline: str, name: str) -> str:
    """Show the lines that load what lies in the folder."""
    if kind.endswith(".onnx"):
        lines = ["from onnxruntime import InferenceSession", f'session = InferenceSession("{kind}")']
        dtype = "q8" if "quantized" in kind else "fp32"
        script = [
            "import { pipeline } from '@huggingface/transformers';",
            "// the folder on the Hub, or a path that begins with ./ or /",
            f"const model = await pipeline('{pipeline}', 'THIS FOLDER', {{ dtype: '{dtype}' }});",
        ]
        own = "It takes what the tokenizer in this folder makes. In Python:"
        return "\n\n".join([own, _code(lines), "With transformers.js:", _code(script, "js")])
    lines = ["import pgb_lightning  # pip install pgb-lightning: registers the model type"] if kind != "dense" else []
    head = next((end for end in PIPELINES if name.endswith(end)), "")
    if head == "ForSequenceClassification":
        lines += ["from transformers import pipeline", f'model = pipeline("{pipeline}", "THIS FOLDER")']
    else:
        lines += [
            f"from transformers import AutoModel{head}",
            f'model = AutoModel{head}.from_pretrained("THIS FOLDER")',
        ]
    return _code(lines)


def _code(lines: list[str], language: str = "python") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _hub_name(name: str | None) -> str | None:
    """Leave out paths on somebody's machine."""
    if name is None or Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None
    return name
