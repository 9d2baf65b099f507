"""What callbacks that write predictions into a folder share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BasePredictionWriter


class FolderWriter(BasePredictionWriter):
    """Write files into a folder when all is predicted, and replace none that nobody said to replace.

    Args:
        output_dir: Folder for the files; made if it is not there.
        overwrite: Whether to replace files that are there already.
    """

    def __init__(self, output_dir: str, overwrite: bool = False) -> None:
        super().__init__(write_interval="epoch")
        self.output_dir = Path(output_dir).expanduser()
        self.overwrite = overwrite

    def check_free(self, paths: Iterable[Path]) -> None:
        """Make sure that files can be written, before anything is computed.

        Raises:
            MisconfigurationException: One is there already, and ``overwrite`` is not set.
        """
        present = [str(path) for path in paths if path.exists()]
        if present and not self.overwrite:
            raise MisconfigurationException(
                f"{type(self).__name__}: {', '.join(present)} is there already; remove it, give another output_dir, "
                "or set overwrite: true."
            )
