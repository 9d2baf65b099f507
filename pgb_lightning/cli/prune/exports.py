"""Write the results of ``pgb prune``: the Hugging Face folder, with other formats in its subfolders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pgb_lightning.cli.prune.settings import PruneSettings
from pgb_lightning.datamodules import TextDataModule
from pgb_lightning.export.calibration_feeds import CALIBRATION_BATCHES
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.huggingface import export_huggingface
from pgb_lightning.export.inherited_card import read_inherited
from pgb_lightning.export.onnx import export_onnx
from pgb_lightning.export.openvino import export_openvino
from pgb_lightning.modules import SentenceEmbedding
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.packaged import public_name
from pgb_lightning.plan import PruningPlan
from pgb_lightning.runtimes.requirements import require_onnx, require_openvino

FormatName = Literal["onnx", "onnx-int8", "onnx-int8-dynamic", "openvino", "openvino-int8"]


@dataclass(frozen=True)
class Format:
    """An export format for another runtime.

    Args:
        write: Exports a model to a folder.
        require: Raises if a package is missing.
        quantize: The argument ``quantize`` of ``write``.
        needs_calibration: Whether quantization reads the ranges of activations from calibration batches.
    """

    write: Callable[..., Path]
    require: Callable[[], None]
    quantize: str | None = None
    needs_calibration: bool = False


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(export_onnx, require_onnx),
    "onnx-int8": Format(export_onnx, require_onnx, quantize="int8", needs_calibration=True),
    "onnx-int8-dynamic": Format(export_onnx, require_onnx, quantize="int8-dynamic"),
    "openvino": Format(export_openvino, require_openvino),
    "openvino-int8": Format(export_openvino, require_openvino, quantize="int8", needs_calibration=True),
}


def make_facts(
    module: FineTuning,
    data: TextDataModule,
    settings: PruneSettings,
    scores: dict[str, float],
    dense_scores: dict[str, float],
    repo_id: str | None,
) -> CardFacts:
    """Return the facts for the model cards that cannot be read from the model.

    Args:
        module: The module.
        data: The data on which it was scored.
        settings: The settings of the run.
        scores: The module's scores, as logged.
        dense_scores: The dense model's scores, as logged.
        repo_id: Name of the Hub repository to push to, if any.
    """
    return CardFacts(
        base_model=public_name(settings.model),
        scores=_metrics(scores),
        dense_scores=_metrics(dense_scores),
        dataset=settings.data if data.tables.is_on_hub else None,
        is_sentence_embedding=isinstance(module, SentenceEmbedding),
        inherited=read_inherited(settings.model),
        repo_id=repo_id,
    )


def write_all(
    module: FineTuning,
    plan: PruningPlan,
    data: TextDataModule,
    settings: PruneSettings,
    formats: Sequence[FormatName],
    facts: CardFacts,
) -> None:
    """Write the model to the output folder, and each further format to a subfolder of its name.

    Args:
        module: The module.
        plan: The plan with which it was pruned.
        data: The data, for the tokenizer and calibration batches.
        settings: The settings of the run.
        formats: Names of further formats.
        facts: Facts for the model cards.
    """
    module.to("cpu")
    target = Path(settings.output_dir).expanduser()
    for name in formats:
        chosen = FORMATS[name]
        calibration: Any = None
        if chosen.needs_calibration:
            calibration = list(islice(data.calibration_dataloader(), CALIBRATION_BATCHES))
        shutil.rmtree(target / name, ignore_errors=True)  # left by an earlier attempt
        chosen.write(
            module.model, target / name, data.tokenizer, facts, quantize=chosen.quantize, calibration=calibration
        )
        module.write_companion_files(target / name)
    written = settings.run_folder / "exported"
    shutil.rmtree(written, ignore_errors=True)
    export_huggingface(module.model, written, plan, data.tokenizer, facts)
    module.write_companion_files(written)
    # config.json comes last, since it marks the run as finished.
    for file in sorted(written.iterdir(), key=lambda path: path.name == "config.json"):
        if file.is_dir():  # which would be moved into a folder that is left by an earlier attempt
            shutil.rmtree(target / file.name, ignore_errors=True)
        shutil.move(file, target / file.name)
    written.rmdir()


def _metrics(scores: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("val_"): value for name, value in scores.items() if not name.endswith("loss")}
