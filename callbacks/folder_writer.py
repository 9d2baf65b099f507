"""Base class of the callbacks that write predictions to a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BasePredictionWriter


class FolderWriter(BasePredictionWriter):
    """Write files to a folder after prediction, and replace existing files only if asked to.

    Args:
        output_dir: Folder for the files; created if it does not exist.
        overwrite: Whether to replace existing files.
    """

    def __init__(self, output_dir: str, overwrite: bool = False) -> None:
        super().__init__(write_interval="epoch")
        self.output_dir = Path(output_dir).expanduser()
        self.overwrite = overwrite

    def check_not_existing(self, paths: Iterable[Path]) -> None:
        """Check that no file would be replaced unintentionally. Call this before predicting.

        Raises:
            MisconfigurationException: If a file exists and ``overwrite`` is not set.
        """
        existing = [str(path) for path in paths if path.exists()]
        if existing and not self.overwrite:
            raise MisconfigurationException(
                f"{type(self).__name__}: {', '.join(existing)} already exists. Remove it, pass another output_dir, or "
                "set overwrite=True."
            )
