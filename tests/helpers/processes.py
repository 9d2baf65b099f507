"""Run the programs of this folder in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
#: Variables that a fit with ``ddp`` sets in its process.
OF_DDP = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def end_distributed() -> None:
    """Leave this process as it was before a fit with ``ddp``."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in OF_DDP:
        os.environ.pop(name, None)


def environment() -> dict[str, str]:
    """Return the environment of a process with one thread and the tests' helpers on its path."""
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a script with one thread and the tests' helpers on its path."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script: str, *arguments: object) -> str:
    """Run a script until it exits and return what it printed."""
    process = start(script, *arguments)
    try:
        out, error = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, error[-3000:]
    return out
