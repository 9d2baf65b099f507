"""Two nodes, each with its own torchrun: one is killed, and the fit is restarted on both."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.entries import assert_equal
from helpers.processes import HERE, environment

from pgb_lightning import PruningPlan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the nodes find each other through Linux's loopback device"),
]


def launch(folder: Path, when: str) -> list[int]:
    """Start a launcher for each node, and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for node in range(2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        rendezvous = [f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        program = [str(HERE / "programs" / "node_fit.py"), str(folder), when]
        log = (folder / f"{when}{node}.log").open("w")
        processes.append(
            subprocess.Popen(
                [*torchrun, *rendezvous, *program],
                env={**environment(), "GLOO_SOCKET_IFNAME": "lo"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
        log.close()
    try:
        return [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit on two nodes, kill one, restart both, and return their folder."""
    folder = tmp_path_factory.mktemp("nodes")
    first, second = launch(folder, "first")
    assert first != 0
    assert second == -9
    assert {path.name for path in folder.glob("*.ckpt")} == {"epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"}
    assert launch(folder, "restarted") == [0, 0], (folder / "restarted0.log").read_text()[-3000:]
    return folder


def test_a_restarted_fit_equals_the_uninterrupted_one_on_both_nodes(nodes: Path, two_processes: Path) -> None:
    resumed = [torch.load(nodes / f"resumed{rank}.pt", weights_only=False) for rank in range(2)]
    expected = torch.load(two_processes / "exact" / "uninterrupted0.pt", weights_only=False)
    assert_equal(resumed, [expected, expected])
    assert PruningPlan.load(nodes / "plan.json").to_dict() == expected["plan"]


@pytest.mark.parametrize(
    ("what", "starts"), [("no checkpoint", ("6", "no checkpoint")), ("an earlier checkpoint", ("6", "3"))]
)
def test_nodes_with_different_files_are_refused_on_both(what: str, starts: tuple[str, str], nodes: Path) -> None:
    errors = [torch.load(nodes / f"errors{rank}.pt", weights_only=False)[what] for rank in range(2)]
    assert errors[0] == errors[1]
    assert "PGBCallback" in errors[0]
    for rank, start in enumerate(starts):
        assert re.search(rf"{start} and .*plan.* on rank {rank}", errors[0])
