"""The fine-tuned model that ``pgb prune`` starts from: a folder, a name on the Hub, or a Lightning checkpoint."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from pgb_lightning.datamodules.labels import Labels, read_head
from pgb_lightning.export.pruned_checkpoint import read_module
from pgb_lightning.modules.pooling import read_pooling
from pgb_lightning.packaged import explain_model_errors, read_tokenizer, resolve_model


def find_dense(model: str, run_folder: Path) -> str:
    """Return a folder or name with a model for ``from_pretrained``. That of a checkpoint is written to a folder.

    Args:
        model: A folder, a name on the Hub, or a Lightning checkpoint of a module of this package.
        run_folder: Where the model of a checkpoint is written.

    Raises:
        MisconfigurationException: If there is no such checkpoint, or it is not of a module of this package.
    """
    path = Path(model).expanduser()
    if path.suffix != ".ckpt":
        return str(path) if path.is_dir() else model
    folder = run_folder / "dense"
    if not (folder / "config.json").is_file():
        module = read_module(path, name="model")
        module.model.save_pretrained(folder)
        module.write_companion_files(folder)
        read_tokenizer(str(module.hparams["model_name_or_path"])).save_pretrained(folder)
    return str(folder)


def require_head(model: str) -> Labels | None:
    """Return the labels of a fine-tuned model, or ``None`` for an embedding model of sentence-transformers.

    Args:
        model: A folder, or a name on the Hub.

    Raises:
        MisconfigurationException: If the model cannot be read, or is neither.
    """
    head = read_head(model)
    if head is None:
        if read_pooling(model) is not None:
            return None
        raise MisconfigurationException(
            f"model={model!r} is not fine-tuned for classification, regression or token classification (its "
            "configuration names no such class under 'architectures'), and is no embedding model (there is no "
            "modules.json). Fine-tune it first, such as with `pgb fit`, and "
            "pass the result."
        )
    is_tagger = head.problem_type == "token_classification"
    auto = AutoModelForTokenClassification if is_tagger else AutoModelForSequenceClassification
    with explain_model_errors(model, "weights"):
        _, info = auto.from_pretrained(resolve_model(model), output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise MisconfigurationException(
            f"model={model!r} is not fine-tuned: it has no weights for {', '.join(missing[:4])}. Pass the folder that "
            "was saved after fine-tuning."
        )
    return head
