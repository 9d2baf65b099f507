"""Save and restore the states of the random number generators, so that resumed runs are exact."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed

from pgb_lightning._compat import restart_training_batches


class ExactResume(pl.Callback):
    """Save the states of all random number generators in checkpoints, and restore them when a fit is resumed.

    Lightning restores weights, optimizers, schedulers and counters, but not the generators for dropout and the order of
    batches. With this callback, training for k epochs and resuming in a new process for m epochs gives bitwise the same
    weights as k + m epochs without interruption. This requires deterministic operations, and a checkpoint that was
    saved at the end of an epoch, as by :class:`BestCheckpoint`, or by ``ModelCheckpoint`` with validation after every
    epoch. ``docs/lightning.md`` lists what Lightning itself does not restore. Checkpoints saved without this callback
    resume as usual.

    The states are those of Python, NumPy, torch on the CPU and the process's own CUDA device, for every process. Under
    ``ddp`` the order of batches depends on the seed passed to ``seed_everything``; use the same seed again.

    Example:
        >>> trainer = pl.Trainer(callbacks=[ExactResume()], logger=False, enable_progress_bar=False,
        ...                      enable_model_summary=False)
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the states that an earlier fit read, if it failed before it restored them."""
        self._restored = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the states of all processes to the checkpoint. Lightning calls this on every process."""
        state = _collect(pl_module.device)
        states = [state] * trainer.world_size
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_gather_object(states, state)
        checkpoint[self.state_key] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the states from the checkpoint. They are restored later, in ``on_fit_start``."""
        if trainer.state.fn != TrainerFn.FITTING:  # Evaluation does not restore random states.
            return
        self._restored = checkpoint.get(self.state_key)
        if self._restored is None:
            rank_zero_warn(
                "ExactResume: the checkpoint was saved without this callback, so it has no states of random number "
                "generators. Random numbers will differ from those of the uninterrupted run."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the state of this process."""
        states, self._restored = self._restored, None
        if states is None:
            return
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"ExactResume: the checkpoint was saved by {len(states)} processes and is resumed by "
                f"{trainer.world_size}. Random numbers will differ from those of the uninterrupted run."
            )
            return
        state = states[trainer.global_rank]
        if (state["cuda"] is None) is (pl_module.device.type == "cuda"):
            rank_zero_warn(
                f"ExactResume: the checkpoint was saved {'on' if state['cuda'] is not None else 'without'} a CUDA "
                f"device and is resumed on {pl_module.device}. Random numbers will differ from those of the "
                "uninterrupted run."
            )
        _restore(state, pl_module.device)
        restart_training_batches(trainer)  # draws as in the uninterrupted run; an earlier iterator drew before


def _collect(device: torch.device) -> dict[str, Any]:
    """Return the generators' states as tensors and plain values, as ``weights_only=True`` requires."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *map(float, rest)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _restore(state: dict[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
