"""The end of a run on several processes."""

from __future__ import annotations

import gc

from torch import distributed


def close_process_group() -> None:
    """Close what joins the processes, where there are several; to be called when nothing needs it any more.

    Lightning does it for NCCL only. A gloo thread that is still about to let go of the last collective when the
    interpreter ends aborts the process: a fit on CPUs that went well would then exit with status 134.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # gloo's threads end with the last reference to the group, and a module that DDP wrapped had one
