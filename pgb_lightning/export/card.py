"""Model cards of exported models: size, scores, latency, and how to load the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import EXPORTED
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.registered_models import ExportedModel, head_of
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.record import dense_encoder

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from pgb_lightning.plan import PruningPlan

#: The Hub's pipeline tag for each suffix of a model class's name.
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
}


@dataclass(frozen=True)
class CardFacts:
    """Facts for a model card that cannot be read off the model.

    Args:
        base_model: Name on the Hub of the model that was fine-tuned. Local paths are left out of the card.
        task: The task it was fine-tuned for, such as ``"sst2"``.
        scores: Scores by name, such as ``{"accuracy": 87.4, "accuracy of the dense model": 87.0}``.
        latency: Milliseconds per call by name, such as ``{"pruned, batch 1": 10.4}``.
    """

    base_model: str | None = None
    task: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)


def make_card(
    model: PreTrainedModel, kind: str, facts: CardFacts | None = None, plan: PruningPlan | None = None
) -> ModelCard:
    """Create a model card.

    Args:
        model: The model, plain or exported, pruned or dense.
        kind: The content of the folder: ``"huggingface"``, ``"dense"``, or the path of an ONNX or OpenVINO file in it.
        facts: Facts that cannot be read off the model.
        plan: The plan the model was pruned with, if known.

    Returns:
        The card. Write it with ``card.save(path)``.
    """
    from huggingface_hub import ModelCard, ModelCardData  # slow to import, and needed only here

    facts = facts or CardFacts()
    name, suffix = type(model).__name__, Path(kind).suffix
    pipeline = next((tag for suffix, tag in PIPELINES.items() if name.endswith(suffix)), "feature-extraction")
    base = _hub_name(facts.base_model)
    tags = ["pgb-lightning", "pruned"]
    data = ModelCardData(
        base_model=base,
        library_name={".onnx": "transformers.js", ".xml": "openvino"}.get(suffix, "transformers"),
        pipeline_tag=pipeline,
        tags=[*tags, *{".onnx": ["onnx"], ".xml": ["openvino"]}.get(suffix, [])],
    )
    task = f"on {facts.task}," if facts.task else ""
    title = " ".join(filter(None, (base or find_encoder(model).model_type, task, "pruned")))
    parts = [
        f"# {title}",
        _size_section(model, plan),
        *_measurements(facts),
        f"## Usage\n\n{_usage(model, kind, pipeline)}",
    ]
    return ModelCard("\n\n".join([f"---\n{data.to_yaml()}\n---", *parts]) + "\n")


def _size_section(model: PreTrainedModel, plan: PruningPlan | None) -> str:
    """Describe how much of the encoder was kept."""
    encoder = find_encoder(model)
    total = encoder_cost(dense_encoder(encoder)).parameters
    kinds = ", ".join(encoder.matrices)
    if not is_pruned(encoder):
        return f"A dense encoder with {total:,} weights ({kinds} of {len(encoder.layers)} layers)."
    kept = encoder_cost(encoder).parameters
    rows = {
        f"encoder weights ({kinds})": f"{kept:,} of {total:,}",
        "removed": f"{100 * (1 - kept / total):.1f} %",
        "parameters of the whole model": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }
    if plan is not None:
        settings = {name: plan.config[name] for name in ("pruning_ratio", "permutation") if name in plan.config}
        rows |= {f"{name} of the plan": str(value) for name, value in settings.items()}
    return (
        "Pruned in one shot by weight grouping and permutation (PGB, JAIR 85:24, 2026) with "
        "pgb-lightning.\n\n" + _table("encoder", rows)
    )


def _measurements(facts: CardFacts) -> list[str]:
    """Return the sections on scores and latency, if known."""
    sections = []
    if facts.scores:
        rows = {name: f"{value:.4g}" for name, value in facts.scores.items()}
        sections.append("## Scores\n\n" + _table("score", rows))
    if facts.latency:
        rows = {name: f"{value:.4g}" for name, value in facts.latency.items()}
        sections.append("## Latency\n\n" + _table("milliseconds per call", rows))
    return sections


def _table(title: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _usage(model: PreTrainedModel, kind: str, pipeline: str) -> str:
    """Return the code that loads the model from its folder."""
    if kind.endswith(".onnx"):
        lines = ["from onnxruntime import InferenceSession", f'session = InferenceSession("{kind}")']
        dtype = "q8" if "quantized" in kind else "fp32"
        script = [
            "import { pipeline } from '@huggingface/transformers';",
            "// the folder on the Hub, or a path that begins with ./ or /",
            f"const model = await pipeline('{pipeline}', 'THIS FOLDER', {{ dtype: '{dtype}' }});",
        ]
        intro = "The inputs are those of the tokenizer in this folder. In Python:"
        return "\n\n".join([intro, _code(lines), "With transformers.js:", _code(script, "js")])
    if kind.endswith(".xml"):
        return _openvino_usage(kind)
    lines = ["import pgb_lightning  # pip install pgb-lightning: registers the model type"] if kind != "dense" else []
    cls = model.dense_class if isinstance(model, ExportedModel) else type(model)
    package = cls.__module__.partition(".")[0]
    if package != "transformers":
        lines.append(f"import {package}  # which knows {model.config.model_type.removeprefix(EXPORTED)}")
    head = head_of(cls)
    if head in ("ForSequenceClassification", "ForTokenClassification"):
        # The pipeline returns one label by default.
        several = ", top_k=None" if model.config.problem_type == "multi_label_classification" else ""
        lines += ["from transformers import pipeline", f'model = pipeline("{pipeline}", "THIS FOLDER"{several})']
    else:
        lines += [
            f"from transformers import AutoModel{head}",
            f'model = AutoModel{head}.from_pretrained("THIS FOLDER")',
        ]
    return _code(lines)


def _openvino_usage(file: str) -> str:
    lines = [
        "import openvino",
        "from transformers import AutoTokenizer",
        "",
        f'model = openvino.compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        'texts = AutoTokenizer.from_pretrained("THIS FOLDER")(["a text"], padding=True, return_tensors="np")',
        "outputs = model({value.any_name: texts[value.any_name] for value in model.inputs})",
    ]
    note = (
        'On a processor with bf16, `"INFERENCE_PRECISION_HINT": "bf16"` is faster and less precise. It is OpenVINO\'s '
        "default there."
    )
    return f"{_code(lines)}\n\n{note}"


def _code(lines: list[str], language: str = "python") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _hub_name(name: str | None) -> str | None:
    """Return the name, or ``None`` if it is a local path."""
    if name is None or Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None
    return name
