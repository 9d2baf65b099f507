"""Shut down the process group of a distributed run."""

from __future__ import annotations

import gc

from torch import distributed


def close_process_group() -> None:
    """Destroy the default process group, if there is one, after its last use.

    Lightning does so for NCCL only. If a gloo thread is still releasing the last collective when the interpreter exits,
    the process aborts, so a successful fit on CPUs would exit with status 134.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        # gloo's threads end with the last reference to the group, which may be held by a module that DDP wrapped.
        gc.collect()
