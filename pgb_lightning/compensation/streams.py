"""The hidden states of the calibration samples in the dense and the pruned model, advanced layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pgb_lightning.calibration.collect import LayerInput
from pgb_lightning.compensation.ridge import held_out_mask
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import Sublayer


class Stream:
    """The hidden states of one calibration batch, in the dense and in the pruned model.

    Args:
        given: The first layer's input, which is the same for both models.
        device: Device of the layers. The states are kept in main memory.
        hold_out: Whether some samples are held out, to choose the ridge.

    Attributes:
        step: Index of the run of a layer of which the states are the input.
    """

    def __init__(self, given: LayerInput, device: torch.device, hold_out: bool = False) -> None:
        self.first = self.dense = self.pruned = given.hidden
        self.arguments = given.arguments
        self.step = 0
        self.tokens = given.tokens
        self.device = device
        self.held = held_out_mask(given.tokens).to(device) if hold_out else None

    def go_to(self, encoder: Encoder, step: int) -> None:
        """Move both streams from the output of one run of a layer to the input of a later one."""
        for passed in range(self.step, step):
            self.dense, self.pruned = self.pass_on(encoder, passed, self.dense, self.pruned)
        self.step = step

    def pass_on(self, encoder: Encoder, step: int, dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input states of the next run of a layer, given the output states of a run."""
        if encoder.family.between is None:
            return dense, pruned
        first, tokens = self.first.to(self.device), self.tokens.to(self.device)
        passed = encoder.pass_on(step, first, dense.to(self.device), tokens).cpu()
        if pruned is dense:
            return passed, passed
        return passed, encoder.pass_on(step, first, pruned.to(self.device), tokens).cpu()

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return the states of the real tokens in the pruned and in the dense model, (T, d) each."""
        return self.pruned[self.tokens].to(self.device), self.dense[self.tokens].to(self.device)

    def real(self, states: Tensor) -> Tensor:
        """Return the real tokens' rows of (B, S, ...) states on the device, (T, ...)."""
        return states[self.tokens.to(states.device)]

    def run(self, encoder: Encoder, layer: nn.Module, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Run one sublayer on (B, S, d) hidden states."""
        return encoder.run(layer, sublayer, hidden.to(self.device), self.arguments[self.step]).cpu()

    def run_until(
        self, matrix: nn.Module, encoder: Encoder, layer: nn.Module, sublayer: Sublayer, hidden: Tensor
    ) -> Tensor:
        """Run a sublayer up to a matrix, and return the matrix's input.

        Args:
            matrix: The module that holds the matrix.
            encoder: The encoder.
            layer: The layer to which the sublayer belongs.
            sublayer: The sublayer.
            hidden: Hidden states, (B, S, d).
        """

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _ReachedError(args[0])

        handle = matrix.register_forward_pre_hook(stop)
        try:
            self.run(encoder, layer, sublayer, hidden)
        except _ReachedError as reached:
            return reached.states
        finally:
            handle.remove()
        raise RuntimeError(f"The {sublayer} sublayer of the encoder at {encoder.where} did not run its last matrix.")


class _ReachedError(Exception):
    """Raised to end a run as soon as the input of a matrix is known.

    Args:
        states: The input.
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@contextmanager
def captured(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the input and output of each call of a layer."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def idle(modules: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Yield the names of the modules that have not been called so far."""
    left = set(modules)
    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_hook(lambda *_, name=name: left.discard(name))
            stack.callback(handle.remove)
        yield left
