"""Find the fine-tuned model for ``pgb prune``: a folder, a name on the Hub, or a Lightning checkpoint."""

from __future__ import annotations

from pathlib import Path

from pgb_lightning.export.pruned_checkpoint import read_module
from pgb_lightning.packaged import read_tokenizer


def find_dense(model: str, run_folder: Path) -> str:
    """Return a folder or name for ``from_pretrained``. The model of a checkpoint is first saved to a folder.

    Args:
        model: A folder, a name on the Hub, or a Lightning checkpoint of a module of this package.
        run_folder: The folder of the run, in which the model of a checkpoint is saved.

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
