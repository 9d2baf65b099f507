"""Draw fewer random numbers for dropout while a module is trained on a CPU."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn

from pgb_lightning.layers.fast_dropout import use_default_dropout, use_fast_dropout


class FastDropout(pl.Callback):
    """Train with :class:`~pgb_lightning.layers.Dropout16` in place of ``nn.Dropout``.

    On a CPU, drawing the random numbers of dropout takes time that pruning does not reduce (``docs/performance.md``).
    The dropout probability is the same to within 1/131,072, but with the same seed other entries are dropped than
    without this callback, so the trained weights differ. On a GPU, the callback has no effect.

    Example:
        >>> trainer = pl.Trainer(callbacks=[FastDropout()], logger=False, enable_progress_bar=False,
        ...                      enable_model_summary=False)
    """

    def __init__(self) -> None:
        self._layers: list[nn.Dropout] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the layers, after any pruning."""
        self._layers = use_fast_dropout(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put torch's layers back."""
        self._undo()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put torch's layers back after a fit that failed."""
        self._undo()

    def _undo(self) -> None:
        use_default_dropout(self._layers)
        self._layers = []
