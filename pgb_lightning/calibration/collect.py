"""The calibration pass: Fisher information, second moments and first-layer inputs of a dense encoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pgb_lightning.calibration.attention import check_attention
from pgb_lightning.calibration.hooks import EncoderCall, EncoderCalls, MomentSums, calibration_hooks
from pgb_lightning.calibration.moments import AllReduce
from pgb_lightning.calibration.same_layers import layer_outputs, why_not_same
from pgb_lightning.calibration.signal import Counts, check_differentiable, check_usable
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.modes import eval_mode, uncompiled

#: Runs the model under calibration on a batch and returns the mean loss of its samples, or ``None`` to skip the batch.
Loss = Callable[[Any], Tensor | None]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)  # at the caller of calibrate()


@dataclass(frozen=True)
class LayerInput:
    """The inputs of the encoder's layers for one calibration batch; compensation needs no other data.

    Args:
        hidden: The first layer's input hidden states, (B, S, d), on the CPU. Positions that are padding in every sample
            are removed if the shape of the mask allows it.
        tokens: True at real tokens, False at padding, (B, S).
        arguments: For each run of a layer, in order, the other arguments that the family's sublayers need.
    """

    hidden: Tensor
    tokens: Tensor
    arguments: list[dict[str, Any]]


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of the layers' inputs and output gradients, by (layer index, matrix kind).

    Args:
        inputs: H, the covariance over real tokens of the inputs of Q (shared by K and V), O, W1 (shared by W3) and W2,
            (M, M).
        gradients: A, the mean over samples of the sum of g gᵀ over a sample's real tokens, where g is the gradient of
            the sample's loss with respect to a matrix's outputs: (N, N) for O and W2, its diagonal (N,) for the others.
        means: The means of the same inputs, (M,).
    """

    inputs: dict[tuple[int, str], Tensor]
    gradients: dict[tuple[int, str], Tensor]
    means: dict[tuple[int, str], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Calibration statistics of a dense encoder.

    Args:
        fisher: F, the diagonal empirical Fisher information of each matrix by (layer index, matrix kind), (M, N): the
            mean over samples, limited by ``fisher_samples``, of the squared gradient of the sample's loss.
        inputs: The first layer's inputs, one entry per batch of this process, limited by ``max_tokens``.
        num_samples: Number of samples over all processes.
        num_with_gradient: Number of those samples whose loss has a gradient.
        moments: Second moments, if they were requested.
    """

    fisher: dict[tuple[int, str], Tensor]
    inputs: list[LayerInput]
    num_samples: int
    num_with_gradient: int
    moments: SecondMoments | None = None


def calibrate(
    encoder: Encoder,
    batches: Iterable[Any],
    loss: Loss,
    all_reduce: AllReduce = lambda tensor: tensor,
    max_tokens: float = math.inf,
    moments: bool = False,
    warn: Callable[[str], object] = _warn,
    fisher_samples: float = math.inf,
) -> Calibration:
    """Collect the diagonal empirical Fisher information of every matrix in one forward and backward pass.

    The weight gradient of a single sample's loss is X_bᵀ G_b, where X_b (S, M) are the sample's inputs to the matrix
    and G_b (S, N) is the gradient with respect to its outputs. Gradients can therefore be squared per sample for any
    batch size. The ``grad`` of parameters is not modified. The encoder runs in eval mode; if the model's head has
    dropout, switch the head to eval mode before the call.

    Args:
        encoder: The dense encoder.
        batches: Calibration batches in a form that ``loss`` accepts; iterated once.
        loss: Runs the model on a batch and returns the mean loss of its samples, or ``None`` to skip the batch.
        all_reduce: Sums a tensor over the processes that share the calibration.
        max_tokens: Once this many real tokens have been seen, stop storing first-layer inputs and accumulating input
            moments. Later batches still contribute to the Fisher information and the moments of gradients.
        moments: Whether to collect :class:`SecondMoments`.
        warn: Issues the warning that some samples have no gradient.
        fisher_samples: Once this process has seen this many samples with a gradient, it stops squaring gradients for F.
            Squaring them takes a third of the pass, or more for short samples.

    Returns:
        The statistics. They take one float per encoder weight and d floats per stored token. Moments additionally take
        the square of each width of a layer.

    Raises:
        ValueError: If the attention implementation or the weights cannot be used, the family runs the layers
            differently from the model, there are no batches, the loss of all batches is ``None``, no sample has a
            gradient, a loss, gradient or statistic is not finite, or the device runs out of memory. If a single batch
            is the cause, the message names it.
    """
    check_attention(encoder)
    check_differentiable(encoder)
    squares = {
        # A sum in half precision would stop growing after a few hundred samples.
        key: torch.zeros_like(linear.weight.T, dtype=torch.promote_types(linear.weight.dtype, torch.float32))
        for key, linear in encoder.linears()
    }
    sums = MomentSums(encoder, max_tokens) if moments else None
    inputs: list[LayerInput] = []
    counts, tokens = Counts(), 0
    problem: str | None = None
    with (
        eval_mode(encoder.model),
        calibration_hooks(encoder, squares, sums) as calls,
        ExitStack() as first_batch,
        uncompiled(),
        torch.enable_grad(),
    ):
        outputs = first_batch.enter_context(layer_outputs(encoder, calls))
        for number, batch in enumerate(batches):
            calls.adds_squares = counts.with_gradient < fisher_samples
            outputs.states.clear()
            calls.clear()  # the hooks add the calls of this batch while the loss is computed
            try:
                problem = _add_batch(number, loss(batch), calls, sums, counts)
            except torch.OutOfMemoryError as error:
                problem = (
                    f"calibration batch {number} does not fit into the device's memory. Use smaller batches. {error}"
                )
            if problem:
                break
            for call in calls:
                if tokens < max_tokens:
                    given = _layer_input(call, encoder.model.dtype)
                    inputs.append(given)
                    tokens += call.num_tokens
                    if len(inputs) == 1:
                        first_batch.close()
                        mask = call.token_mask()
                        problem = why_not_same(encoder, given.hidden, given.tokens, given.arguments, outputs, mask)
                        outputs.states.clear()
            if problem:
                break
    device = encoder.model.device
    _raise_on_all_processes(problem, all_reduce, device)
    counts = counts.reduced(all_reduce, device)
    counts.check(encoder.name)
    total = counts.samples
    fisher = {key: all_reduce(square).div_(counts.squared) for key, square in squares.items()}
    check_usable("squared gradients", fisher.values())
    found = SecondMoments(*sums.finish(all_reduce, total)) if sums else None
    if found is not None:
        check_usable("second moments of the gradients", found.gradients.values())
    if message := counts.warning():
        warn(message)
    return Calibration(fisher, inputs, total, counts.with_gradient, found)


def _layer_input(call: EncoderCall, dtype: torch.dtype) -> LayerInput:
    """Return the layers' input, without positions that are padding in every sample; hidden states are on the CPU.

    What autocast has converted is converted to ``dtype``, since compensation may run the layers without autocast.
    """

    def without_autocast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.dtype == call.autocast_dtype else value

    hidden, tokens = without_autocast(call.hidden.detach()), call.token_mask()
    length = tokens.shape[1]
    used = tokens.any(0).nonzero().flatten().tolist()
    span = slice(used[0], used[-1] + 1) if used else slice(0, length)
    masks = [arguments.get("attention_mask") for arguments in call.arguments]
    is_trimmed = len(used) not in (0, length) and all(isinstance(m, Tensor) and m.shape[-1] == length for m in masks)
    stored: dict[int, Tensor] = {}  # a tensor that several layers receive is stored once

    def store(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(store(name, part) for part in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in stored:
            part = _trim(name, value, span, length) if is_trimmed else value
            part = without_autocast(part)
            stored[id(value)] = _share_rows(part) if name == "attention_mask" else part
        return stored[id(value)]

    arguments = [{name: store(name, value) for name, value in given.items()} for given in call.arguments]
    if not is_trimmed:
        return LayerInput(hidden.cpu(), tokens.cpu(), arguments)
    # Clone, since a slice would keep the memory of the full tensor.
    return LayerInput(hidden[:, span].clone().cpu(), tokens[:, span].clone().cpu(), arguments)


def _trim(name: str, value: Tensor, span: slice, length: int) -> Tensor:
    """Return an argument of a layer (a mask, or a vector for each position) restricted to some of the positions."""
    if name != "attention_mask":
        return value[..., span, :].clone()
    mask = value[..., span]
    if mask.dim() > 2 and mask.shape[-2] == length:
        mask = mask[..., span, :]
    # A mask may be one row expanded to all.
    return mask.clone() if mask.untyped_storage().nbytes() > mask.nbytes else mask


def _share_rows(mask: Tensor) -> Tensor:
    """Return a mask (..., S, S) whose rows share memory if all are equal, as in a padding mask.

    For long sequences, a full mask would take more memory than the hidden states.
    """
    if mask.dim() < 4:
        return mask
    row = mask[..., :1, :]
    return row.clone().expand_as(mask) if torch.equal(mask, row.expand_as(mask)) else mask


def _add_batch(number: int, value: Any, calls: EncoderCalls, sums: MomentSums | None, counts: Counts) -> str | None:
    """Add a batch to the statistics, unless its loss is ``None``.

    Args:
        number: Index of the batch.
        value: The result of the loss function.
        calls: The encoder's calls in the forward pass; emptied if the batch is skipped.
        sums: Sums of second moments, if they were requested.
        counts: The counts to update.

    Returns:
        An error message if the loss or a gradient is unusable, else ``None``.
    """
    counts.batches += 1
    if value is None:
        counts.skipped += 1
        calls.clear()
        return None
    where = f"calibration batch {number}"
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        return f"{where}: the loss is {found}, but must be a tensor with one value."
    if sums is not None:
        sums.add_inputs(calls)
    gradients = _run_backward(value, calls, sums)
    calls.finish_batch()
    # A pass whose output is detached does not count, unless the loss depends on no pass at all.
    used = [call for call in calls if call.is_used] or calls
    finite = [each.isfinite().all() for each in (value, *gradients)]
    # Everything that the host needs, in one transfer, since each transfer waits for the GPU.
    known = [*finite, *(call.has_gradient.sum() for call in used)]
    loss_is_finite, *numbers = torch.stack([each.to(value.device, torch.int64) for each in known]).tolist()
    if not loss_is_finite:
        return f"{where}: the loss is {value.item()}. Check the batch for bad samples and the model for divergence."
    if not all(numbers[: len(gradients)]):
        return f"{where}: a gradient is NaN or infinite. Check the batch for bad samples and the model for divergence."
    samples = sum(len(call.hidden) for call in used)
    counts.samples += samples
    counts.squared += samples if calls.adds_squares else 0
    counts.with_gradient += sum(numbers[len(gradients) :])
    counts.unused += not calls
    return None


def _run_backward(value: Tensor, calls: EncoderCalls, sums: MomentSums | None) -> list[Tensor]:
    """Run the backward pass of a batch's loss, which triggers the hooks on the matrices' outputs.

    Args:
        value: The loss.
        calls: The encoder's calls in the forward pass.
        sums: Sums of second moments, if they were requested.

    Returns:
        The gradients with respect to the first layer's inputs, for the calls that the loss depends on.
    """
    if not calls or not value.requires_grad:
        return []
    # Requesting only the gradient of the first layer's input makes autograd visit every matrix's output, where the
    # hooks are, without computing any weight gradient. Outputs for further inputs are not on this path, so their
    # gradients are requested as well.
    hidden, further = [call.hidden for call in calls], [output for call in calls for *_, output in call.further]
    calls.in_backward = True
    try:
        gradients = torch.autograd.grad(value.reshape(()), [*hidden, *further], allow_unused=True)
    finally:
        calls.in_backward = False
    del calls[len(hidden) :]  # a checkpointed layer runs again in the backward pass
    calls.add_further(gradients[len(hidden) :], sums)
    for call, gradient in zip(calls, gradients[: len(hidden)], strict=True):
        call.is_used = gradient is not None
    return [gradient for gradient in gradients[: len(hidden)] if gradient is not None]


def _raise_on_all_processes(problem: str | None, all_reduce: AllReduce, device: torch.device) -> None:
    """Raise on every process if any process has a problem, so that no process waits forever."""
    count = int(all_reduce(torch.tensor(float(problem is not None), device=device)))
    if problem is not None:
        raise ValueError(problem)
    if count:
        raise ValueError(f"calibration failed on {count} other process(es). See the error raised there.")
