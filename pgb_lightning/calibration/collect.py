"""One pass over the calibration samples: squared gradients, and what enters the first layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgb_lightning.calibration.moments import AllReduce, Covariance, add_gram, symmetric_from_lower
from pgb_lightning.encoders.base import SUBLAYERS, Encoder
from pgb_lightning.modes import eval_mode

#: Computes the loss of one batch with the model under calibration.
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True)
class LayerInput:
    """What the first encoder layer sees of one calibration batch; all that compensation needs of the data.

    Args:
        hidden: Embeddings, (B, S, d), kept in main memory; where the mask allows it, S ends with the longest sample.
        attention_mask: The mask in the form that the layers take, or ``None``.
        tokens: Which positions are real tokens and not padding, (B, S), bool.
    """

    hidden: Tensor
    attention_mask: Tensor | None
    tokens: Tensor


@dataclass(frozen=True)
class SecondMoments:
    """What the search over block shapes needs to know of every layer, by (layer number, matrix kind).

    Args:
        inputs: Covariance of what enters Q (and K and V), O, W1 and W2 over real tokens, (M, M).
        gradients: Mean over samples of the sum over a sample's real tokens of g gᵀ, where g is the gradient of the
            sample's loss at a matrix's output: (N, N) for O and W2, its diagonal (N,) for the others.
    """

    inputs: dict[tuple[int, str], Tensor]
    gradients: dict[tuple[int, str], Tensor]


@dataclass(frozen=True)
class Calibration:
    """Statistics of a dense encoder over the calibration samples.

    Args:
        fisher: F of each matrix, (M, N): the mean over samples of the squared gradient of the sample's loss.
        inputs: The first layer's inputs, batch by batch (this process's share, up to a number of tokens).
        num_samples: Samples seen, over all processes.
        moments: What the search over block shapes needs, where it was asked for.
    """

    fisher: dict[tuple[int, str], Tensor]
    inputs: list[LayerInput]
    num_samples: int
    moments: SecondMoments | None = None


def calibrate(
    encoder: Encoder,
    batches: Iterable[Any],
    loss: Loss,
    all_reduce: AllReduce = lambda tensor: tensor,
    max_tokens: float = math.inf,
    moments: bool = False,
) -> Calibration:
    """Collect the diagonal empirical Fisher of every matrix in one forward and backward pass.

    The gradient of a single sample's loss is X_bᵀ G_b, from the sample's inputs X_b (S, M) to a matrix and
    the gradient G_b (S, N) at its outputs, so squares are taken sample by sample whatever the batch size.
    No parameter's ``grad`` is touched. The encoder runs in eval mode; put a head with dropout into it as well.

    Args:
        encoder: A dense encoder.
        batches: Batches that ``loss`` understands; read once.
        loss: Runs the model on a batch and returns the mean loss of its samples.
        all_reduce: Sums a tensor over the processes that share the calibration.
        max_tokens: Keep the first layer's inputs, and sum up moments of the others, of no more batches once they
            hold this many real tokens.
        moments: Whether to collect :class:`SecondMoments` as well.

    Returns:
        The statistics. Beyond the model they hold one float per encoder weight, and d floats per kept token; moments
        are squares of a layer's widths.

    Raises:
        ValueError: There is no batch, the loss does not depend on the encoder, a loss or gradient is not finite, or the
            device's memory is too small; the message names the batch.
    """
    squares = {
        # Half precision would stop growing after a few hundred samples.
        key: torch.zeros_like(linear.weight.T, dtype=torch.promote_types(linear.weight.dtype, torch.float32))
        for key, linear in encoder.linears()
    }
    sums = _Sums(encoder, max_tokens) if moments else None
    inputs: list[LayerInput] = []
    problem: str | None = None
    samples = tokens = 0
    with eval_mode(encoder.model), _recording(encoder, squares, sums) as calls, torch.enable_grad():
        for number, batch in enumerate(batches):
            calls.clear()
            try:
                problem = _find_problem(number, loss(batch), calls)
            except torch.OutOfMemoryError as error:
                problem = f"calibration batch {number} is too large for the device's memory: give smaller ones. {error}"
            if problem:
                break
            for call in calls:
                samples += len(call.hidden)
                if tokens < max_tokens:
                    inputs.append(call.kept())
                    tokens += int(inputs[-1].tokens.sum())
    _raise_everywhere(problem, all_reduce, encoder.model.device)
    total = int(all_reduce(torch.tensor(float(samples), device=encoder.model.device)))
    if total == 0:
        raise ValueError("the calibration loader is empty: it gave no batch; give at least one labelled batch.")
    fisher = {key: all_reduce(square).div_(total) for key, square in squares.items()}
    return Calibration(fisher, inputs, total, sums.finish(all_reduce, total) if sums else None)


@dataclass
class _Call:
    """One run of the encoder's layers."""

    hidden: Tensor
    attention_mask: Tensor | None
    tokens: Tensor | None

    def real(self) -> Tensor:
        """Return which positions are real tokens, (B, S), bool."""
        if self.tokens is None or self.tokens.shape != self.hidden.shape[:2]:  # no mask, or one of the user's own form
            return torch.ones(self.hidden.shape[:2], dtype=torch.bool, device=self.hidden.device)
        return self.tokens.bool()

    def kept(self) -> LayerInput:
        """Return what compensation needs, without the columns that are padding in every sample."""
        hidden, mask, real = self.hidden.detach(), self.attention_mask, self.real()
        length = real.shape[1]
        used = real.any(0).nonzero().flatten().tolist()
        if used and len(used) < length and isinstance(mask, Tensor) and mask.shape[-1] == length:
            span = slice(used[0], used[-1] + 1)
            # Copies, since a part of a tensor would keep the whole of it; a mask may be one row for all.
            hidden, real, mask = hidden[:, span].clone(), real[:, span].clone(), mask[..., span]
            if mask.dim() > 2 and mask.shape[-2] == length:
                mask = mask[..., span, :]
            mask = mask.clone() if mask.untyped_storage().nbytes() > mask.nbytes else mask
        return LayerInput(hidden.cpu(), mask, real.cpu())


class _Sums:
    """Sums behind :class:`SecondMoments`."""

    def __init__(self, encoder: Encoder, max_tokens: float) -> None:
        self.max_tokens = max_tokens
        self.inputs: dict[tuple[int, str], Covariance] = {}
        self.gradients: dict[tuple[int, str], Tensor] = {}
        closing = [kinds[-1] for kinds in SUBLAYERS.values()]
        for key, linear in encoder.linears():
            device, width = linear.weight.device, linear.out_features
            shape = (width, width) if key[1] in closing else (width,)
            self.gradients[key] = torch.zeros(shape, dtype=torch.float64, device=device)
            if key[1] not in ("K", "V"):  # they read what Q reads
                self.inputs[key] = Covariance(linear.in_features, device)

    def add_inputs(self, key: tuple[int, str], inputs: Tensor, real: Tensor) -> None:
        covariance = self.inputs.get(key)
        if covariance is not None and covariance.count < self.max_tokens:
            covariance.add(_rows(inputs, real))

    def add_gradients(self, key: tuple[int, str], gradients: Tensor, real: Tensor) -> None:
        # The loss is the batch's mean: a sample's own gradient is B times its part of it.
        g, share = _rows(gradients, real).float(), len(gradients)
        if self.gradients[key].dim() == 2:
            add_gram(self.gradients[key], g * share)
        else:
            self.gradients[key] += g.square().sum(0).double() * share**2

    def finish(self, all_reduce: AllReduce, samples: int) -> SecondMoments:
        """Turn sums into means, one at a time, that no two copies of all are held."""
        inputs, gradients = {}, {}
        for key in list(self.inputs):
            inputs[key] = self.inputs.pop(key).finish(all_reduce)
        for key in list(self.gradients):
            total = self.gradients.pop(key)
            gradients[key] = all_reduce(symmetric_from_lower(total) if total.dim() == 2 else total).div_(samples)
        return SecondMoments(inputs, gradients)


def _rows(states: Tensor, real: Tensor) -> Tensor:
    """Return the real tokens' rows of (B, S, N) states, (T, N); where all are real, without a copy."""
    return states.flatten(0, 1) if real.all() else states[real.to(states.device)]


def _find_problem(number: int, value: Any, calls: list[_Call]) -> str | None:
    """Run backward, and say what is wrong with a batch, if anything."""
    where = f"calibration batch {number}"
    if not isinstance(value, Tensor) or value.numel() != 1:
        return f"{where}: the loss is {type(value).__name__}, but must be a tensor with one value."
    if not calls or not value.requires_grad:
        return f"{where}: the loss does not depend on the encoder, so no weight can be scored by it."
    if not torch.isfinite(value):
        return f"{where}: the loss is {value.item()}; look for bad rows or a diverged model there."
    # Asking only for the gradient at the first layer's input makes autograd visit every matrix's output,
    # where the hooks are, without computing a single weight gradient.
    gradients = torch.autograd.grad(value.reshape(()), [call.hidden for call in calls], allow_unused=True)
    if all(gradient is None for gradient in gradients):
        return f"{where}: the loss does not depend on the encoder, so no weight can be scored by it."
    if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
        return f"{where}: a gradient is NaN or infinite; look for bad rows or a diverged model there."
    return None


def _raise_everywhere(problem: str | None, all_reduce: AllReduce, device: torch.device) -> None:
    """Raise on every process if any has a problem, so that none waits for another for ever."""
    count = int(all_reduce(torch.tensor(float(problem is not None), device=device)))
    if problem is not None:
        raise ValueError(problem)
    if count:
        raise ValueError(f"calibration failed on {count} other process(es); see their message.")


@contextmanager
def _recording(encoder: Encoder, squares: dict[tuple[int, str], Tensor], sums: _Sums | None) -> Iterator[list[_Call]]:
    """Hook the encoder so that calls are listed, squared gradients added up, and moments where there are sums."""
    calls: list[_Call] = []
    masks: list[Tensor | None] = [None]
    first = encoder.layers[0]
    parameters = inspect.signature(first.forward).parameters

    def note_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        masks[0] = bound.arguments.get("attention_mask")

    def enter_first_layer(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.is_grad_enabled():  # a pass that the loss does not learn from, such as a teacher's
            return args, kwargs
        arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
        hidden = arguments["hidden_states"].detach().requires_grad_()
        calls.append(_Call(hidden, arguments.get("attention_mask"), masks[0]))
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def watch(key: tuple[int, str]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            inputs, real = args[0].detach(), calls[-1].real()

            def add(gradient: Tensor) -> None:
                _add_squares(squares[key], inputs, gradient)
                if sums is not None:
                    sums.add_gradients(key, gradient, real)

            output.register_hook(add)  # type: ignore[no-untyped-call]
            if sums is not None:
                sums.add_inputs(key, inputs, real)

        return hook

    handles: list[RemovableHandle] = [
        encoder.model.register_forward_pre_hook(note_mask, with_kwargs=True),
        first.register_forward_pre_hook(enter_first_layer, with_kwargs=True),
        *(linear.register_forward_hook(watch(key)) for key, linear in encoder.linears()),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _add_squares(square: Tensor, inputs: Tensor, gradients: Tensor) -> None:
    """Add the squared weight gradient of each sample of a batch to ``square`` (M, N)."""
    batch = len(inputs)
    buffer = torch.empty_like(square)
    for x, g in zip(inputs, gradients, strict=True):
        torch.mm(x.T.to(square.dtype), g.to(square.dtype), out=buffer)
        # The loss is the batch's mean: a sample's own gradient is B times its part of it.
        square.addcmul_(buffer, buffer, value=batch**2)
