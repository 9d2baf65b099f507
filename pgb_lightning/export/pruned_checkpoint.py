"""Read a Lightning checkpoint to be exported: the module, its tokenizer, its plan and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgb_lightning import modules
from pgb_lightning._compat import CLASS_PATH_KEY
from pgb_lightning.checkpoints import get_monitored_scores, load_checkpoint
from pgb_lightning.datamodules.squad import REPOSITORIES as SQUAD_REPOSITORIES
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export.card_facts import CardFacts
from pgb_lightning.export.inherited_card import read_inherited
from pgb_lightning.glue_tasks import GLUE_REPOSITORY, get_task
from pgb_lightning.modules.finetuning import FineTuning
from pgb_lightning.packaged import public_name, read_tokenizer
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery.checks import is_pruned, matches


@dataclass(frozen=True)
class PrunedCheckpoint:
    """The content of a pruned checkpoint.

    Args:
        module: The module with the pruned transformers model, in eval mode.
        tokenizer: The tokenizer of the fine-tuned model, if it could be read.
        plan: The plan, if it is in the checkpoint.
        card: Facts for the model card.
    """

    module: FineTuning
    tokenizer: PreTrainedTokenizerBase | None
    plan: PruningPlan | None
    card: CardFacts

    @property
    def model(self) -> PreTrainedModel:
        """The pruned transformers model."""
        return self.module.model


def read_checkpoint(ckpt_path: str | Path) -> PrunedCheckpoint:
    """Read a pruned checkpoint of a module in :mod:`pgb_lightning.modules`, such as :class:`TextClassification`.

    Args:
        ckpt_path: The checkpoint.

    Raises:
        MisconfigurationException: If the file does not exist, is not a checkpoint of these modules, or holds a dense
            model.
    """
    module, checkpoint = _read(ckpt_path, "ckpt_path")
    hparams = checkpoint.get("hyper_parameters", {})
    encoder = find_encoder(module.model)
    if not is_pruned(encoder):
        raise MisconfigurationException(
            f"ckpt_path={str(ckpt_path)!r} holds a dense model. Prune it first (`pgb fit` with a PGBCallback) and pass "
            "the checkpoint of that fit. To save a dense model, call `module.model.save_pretrained(folder)`."
        )
    name = str(hparams["model_name_or_path"])
    states = checkpoint.get("callbacks", {})
    plan, scores = _stored_plan(states, encoder), get_monitored_scores(states, ckpt_path)
    card = replace(_data_facts(hparams), base_model=public_name(name), scores=scores, inherited=read_inherited(name))
    if isinstance(module, modules.SentenceEmbedding):
        card = replace(card, is_sentence_embedding=True)
    return PrunedCheckpoint(module, _read_tokenizer(name), plan, card)


def read_module(ckpt_path: str | Path, name: str = "ckpt_path") -> FineTuning:
    """Read the module of a checkpoint, pruned or dense, in eval mode.

    Args:
        ckpt_path: The checkpoint.
        name: Name of the setting, for messages.

    Raises:
        MisconfigurationException: If the file does not exist, or is not a checkpoint of a module of this package.
    """
    return _read(ckpt_path, name)[0]


def _read(ckpt_path: str | Path, name: str) -> tuple[FineTuning, Mapping[str, Any]]:
    if not Path(ckpt_path).is_file():
        raise MisconfigurationException(
            f"{name}={str(ckpt_path)!r} is not a file. Pass a checkpoint of `pgb fit`, such as best.ckpt."
        )
    try:
        checkpoint = load_checkpoint(ckpt_path)
    except ValueError as error:
        raise MisconfigurationException(f"{name}={error}") from None
    module_class = _module_class(checkpoint.get("hyper_parameters", {}), ckpt_path, name)
    return module_class.load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True).eval(), checkpoint


def _module_class(hparams: Mapping[str, Any], ckpt_path: str | Path, name: str) -> type[FineTuning]:
    """Return the class of the module that wrote a checkpoint. Checkpoints of the command line have its import path."""
    found: Any = None
    path = hparams.get(CLASS_PATH_KEY)
    if path is not None:
        package, _, class_name = str(path).rpartition(".")
        with suppress(ImportError):  # a user's package that is not installed here
            found = getattr(import_module(package), class_name, None) if package else None
    elif {"hf_config", "model_name_or_path"} <= hparams.keys():
        # Identify other checkpoints by settings that only one of the classes has.
        is_tagger = "num_labels" in hparams and "task" not in hparams
        found = modules.TokenClassification if is_tagger else modules.TextClassification
        found = modules.QuestionAnswering if "n_best" in hparams else found
        found = modules.SentenceEmbedding if "pooling" in hparams else found
    if not (isinstance(found, type) and issubclass(found, FineTuning)):
        raise MisconfigurationException(
            f"{name}={str(ckpt_path)!r} was written by {path or 'another module'}, not by one of "
            f"{', '.join(modules.__all__)}. Load it with your module and call pgb_lightning.export.export_huggingface("
            "module.model, folder)."
        )
    return found


def _stored_plan(states: Mapping[str, Any], encoder: Encoder) -> PruningPlan | None:
    """Return the plan with which the encoder was pruned, if it is among the callback states."""
    plans = [state["plan"] for state in states.values() if isinstance(state, Mapping) and state.get("plan")]
    return next((plan for plan in map(PruningPlan.from_dict, plans) if matches(encoder, plan)), None)


def _data_facts(hparams: Mapping[str, Any]) -> CardFacts:
    """Return the facts about the data that are in the hyperparameters."""
    if hparams.get("task"):
        task = get_task(hparams["task"])
        return CardFacts(task=task.name, dataset=f"{GLUE_REPOSITORY}:{task.name}", split=task.validation_splits[0])
    version = hparams.get("version")
    if version is None:
        return CardFacts()
    return CardFacts(task=f"SQuAD {version}", dataset=SQUAD_REPOSITORIES[version], split="validation")


def _read_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer of the fine-tuned model, or warn and return ``None``."""
    try:
        return read_tokenizer(name)
    except MisconfigurationException as error:
        cause = error.__cause__
        first = (f"{type(cause).__name__}: {cause}" if cause else str(error)).strip().partition("\n")[0]
        rank_zero_warn(
            f"No tokenizer could be read from model_name_or_path={name!r} ({first}). The folder is written without "
            "one. Add the tokenizer the model was trained with: tokenizer.save_pretrained(folder)."
        )
        return None
