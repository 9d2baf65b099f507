"""Model cards of exported models: size, scores, latency, and how to load the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import EXPORTED
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.card_metadata import make_metadata, pipeline_tag, title
from pgb_lightning.export.registered_models import ExportedModel, head_of
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.record import dense_encoder

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from pgb_lightning.plan import PruningPlan


def make_card(
    model: PreTrainedModel,
    kind: str,
    facts: CardFacts | None = None,
    plan: PruningPlan | None = None,
    is_quantized: bool = False,
) -> ModelCard:
    """Create a model card.

    Args:
        model: The model, plain or exported, pruned or dense.
        kind: The content of the folder: ``"huggingface"``, ``"dense"``, or the path of an ONNX or OpenVINO file in it.
        facts: Facts that cannot be read from the model.
        plan: The plan with which the model was pruned, if known.
        is_quantized: Whether the weights of the file are integers.

    Returns:
        The card. Write it with ``card.save(path)``.
    """
    from huggingface_hub import ModelCard  # slow to import, and needed only here

    facts = facts or CardFacts()
    data = make_metadata(model, kind, facts, is_quantized)
    usage = _usage(model, kind, facts).replace("THIS FOLDER", facts.repo_id or "THIS FOLDER")
    if facts.is_sentence_embedding and kind not in ("huggingface", "dense"):
        usage += "\n\nPool the states of the tokens as in `modules.json` and `1_Pooling/config.json`."
    parts = [
        f"# {title(model, facts)}",
        _size_section(model, plan),
        *_measurements(facts, is_quantized),
        f"## Usage\n\n{usage}",
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


def _measurements(facts: CardFacts, is_quantized: bool) -> list[str]:
    """Return the sections on scores and latency, if known."""
    sections = []
    if facts.scores:
        note = "\n\nThese are the scores before the weights were quantized." if is_quantized else ""
        sections.append(f"## Scores\n\n{_score_table(facts)}{note}")
    if facts.latency:
        rows = {name: f"{value:.4g}" for name, value in facts.latency.items()}
        sections.append("## Latency\n\n" + _table("milliseconds per call", rows))
    return sections


def _score_table(facts: CardFacts) -> str:
    """Return the table of scores, with those of the dense model and the differences if they are known."""
    if not facts.dense_scores:
        return _table("score", {name: f"{value:.4g}" for name, value in facts.scores.items()})
    lines = ["| score | dense | this model | difference |", "|---|---|---|---|"]
    for name, value in facts.scores.items():
        dense = facts.dense_scores.get(name)
        before = ("", "") if dense is None else (f"{dense:.4g}", f"{value - dense:+.4f}")
        lines.append(f"| {name} | {before[0]} | {value:.4g} | {before[1]} |")
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _usage(model: PreTrainedModel, kind: str, facts: CardFacts) -> str:
    """Return the code that loads the model from its folder."""
    pipeline = pipeline_tag(model, facts)
    if kind.endswith(".onnx"):
        if facts.is_sentence_embedding:
            pipeline = "feature-extraction"  # transformers.js has no other for them
        lines = ["from onnxruntime import InferenceSession", f'session = InferenceSession("{kind}")']
        dtype = "q8" if "quantized" in kind else "fp32"
        script = [
            "import { pipeline } from '@huggingface/transformers';",
            "// the folder on the Hub, or a path that begins with ./ or /",
            f"const model = await pipeline('{pipeline}', 'THIS FOLDER', {{ dtype: '{dtype}' }});",
        ]
        intro = "The inputs are those of the tokenizer in this folder. In Python:"
        return "\n\n".join([intro, _code(lines), "With transformers.js:", _code(script, "js")])
    if kind.endswith(".pt2"):
        return _torch_usage(model, kind)
    if kind.endswith(".xml"):
        return _openvino_usage(kind)
    lines = ["import pgb_lightning  # pip install pgb-lightning: registers the model type"] if kind != "dense" else []
    cls = model.dense_class if isinstance(model, ExportedModel) else type(model)
    package = cls.__module__.partition(".")[0]
    if package != "transformers":
        lines.append(f"import {package}  # which knows {model.config.model_type.removeprefix(EXPORTED)}")
    head = head_of(cls)
    if facts.is_sentence_embedding:
        lines += [
            "from sentence_transformers import SentenceTransformer",
            'embeddings = SentenceTransformer("THIS FOLDER").encode(["a text"])',
        ]
    elif head in ("ForSequenceClassification", "ForTokenClassification"):
        # The pipeline returns one label by default.
        several = ", top_k=None" if model.config.problem_type == "multi_label_classification" else ""
        lines += ["from transformers import pipeline", f'model = pipeline("{pipeline}", "THIS FOLDER"{several})']
    else:
        lines += [
            f"from transformers import AutoModel{head}",
            f'model = AutoModel{head}.from_pretrained("THIS FOLDER")',
        ]
    return _code(lines)


def _torch_usage(model: PreTrainedModel, file: str) -> str:
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]
    lines = [
        "import torch  # the version that exported it, or a later one",
        "from transformers import AutoTokenizer",
        "",
        f'model = torch.export.load("{file}").module()',
        'texts = AutoTokenizer.from_pretrained("THIS FOLDER")(["a text"], padding=True, return_tensors="pt")',
        f"outputs = model({', '.join(f'texts[{name!r}]' for name in names)})".replace("'", '"'),
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
