"""The device of a measurement: check it, wait for it, and describe it."""

from __future__ import annotations

from typing import Any

import torch

from pgb_lightning.search.processor import processor_name

#: Data types by the names that commands take.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(device: str) -> None:
    """Check that a device exists.

    Raises:
        ValueError: If it is not available.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device={device!r} is not available ({reason}). Use 'cpu' or another device.") from None


def synchronize(device: torch.device | str) -> None:
    """Wait until all work that was queued on a GPU is done; return at once for other devices."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the processor, the number of threads and, on a GPU, its name and memory in bytes.

    Example:
        >>> sorted(describe_machine())
        ['cpu', 'threads']
    """
    machine: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpu": processor_name(),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return machine
