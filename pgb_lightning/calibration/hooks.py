"""Hooks of the calibration pass, which accumulate squared gradients and second moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgb_lightning.calibration.moments import AllReduce, Covariance, add_gram, symmetric_from_lower
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS, input_of
from pgb_lightning.encoders.fused import Columns
from pgb_lightning.model_calls import mask_argument

#: The last matrix of each sublayer.
CLOSING = tuple(kinds[-1] for kinds in SUBLAYERS.values())


@dataclass
class EncoderCall:
    """One call of the encoder's layers with gradients enabled.

    Args:
        hidden: The first layer's input, (B, S, d), which requires a gradient.
        encoder_mask: The mask that was passed to the encoder, usually (B, S).
        arguments: For each run of a layer, the other arguments that the family's sublayers need.
        inputs: The inputs of the matrices, (B, S, M), that are not yet part of the moments.
        seen: The matrices that were applied so far, with the run of their layer.
        further: Matrices that were also applied to inputs other than hidden states (``Family.also_read``), with that
            input, (1, R, M), and the output, (1, R, N).
        repeated: For matrices of layers that run several times, the inputs and output gradients of each run.
        shared: Arguments that were passed to layers, with their detached copies, by identity.
        autocast_dtype: The data type of autocast; ``None`` if it is off.
        is_used: Whether the loss depends on the call; set by the backward pass.
        has_gradient: Whether each sample has a gradient whose square is not zero, (B,); set by the backward pass.
    """

    hidden: Tensor
    encoder_mask: Tensor | None
    arguments: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[tuple[tuple[int, str], Tensor]] = field(default_factory=list)
    seen: set[tuple[int, tuple[int, str]]] = field(default_factory=set)
    further: list[tuple[tuple[int, str], Tensor, Tensor]] = field(default_factory=list)
    repeated: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    shared: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    autocast_dtype: torch.dtype | None = None
    is_used: bool = False
    has_gradient: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.has_gradient = torch.zeros(len(self.hidden), dtype=torch.bool, device=self.hidden.device)

    def detached(self, value: Any) -> Any:
        """Return a layer's argument detached from the autograd graph. Layers that share an argument share the copy."""
        if isinstance(value, tuple):
            return tuple(map(self.detached, value))
        if not isinstance(value, Tensor):
            return value
        return self.shared.setdefault(id(value), (value, value.detach()))[1]

    def token_mask(self) -> Tensor:
        """Return a mask that is True at real tokens, (B, S)."""
        if self.encoder_mask is None or self.encoder_mask.shape != self.hidden.shape[:2]:
            # Without a mask, or with a mask of another shape, all tokens are real.
            return torch.ones(self.hidden.shape[:2], dtype=torch.bool, device=self.hidden.device)
        return self.encoder_mask.bool()

    @cached_property
    def rows(self) -> Tensor | None:
        """Indices of the real tokens among all B·S positions, (T,); ``None`` if all tokens are real.

        Computed once for all matrices, since reading their number waits for the GPU.
        """
        rows = self.token_mask().flatten().nonzero().flatten()
        return None if len(rows) == self.hidden[..., 0].numel() else rows

    @property
    def num_tokens(self) -> int:
        """Number of real tokens, T."""
        return self.hidden[..., 0].numel() if self.rows is None else len(self.rows)


class EncoderCalls(list[EncoderCall]):
    """The encoder's calls for one batch.

    Args:
        squares: Sums of squared weight gradients to add to, (M, N) each.

    Attributes:
        in_backward: Whether the backward pass of the batch's loss is running. Other backward passes, which a step may
            run itself (for example in adversarial training), are ignored.
        adds_squares: Whether squared gradients are added, which takes as long as the gradients of a layer's inputs.
        run: Number of the current run of a layer, from 0.
    """

    def __init__(self, squares: dict[tuple[int, str], Tensor]) -> None:
        super().__init__()
        self.squares = squares
        self.in_backward = False
        self.adds_squares = True
        self.run = -1

    def add_further(self, gradients: Iterable[Tensor | None], sums: MomentSums | None) -> None:
        """Add the gradients with respect to the outputs for further inputs, which all samples of a batch share.

        Only the gradient of the mean loss is known. The mean square over samples is estimated from its square, on the
        assumption that the gradients of samples are independent with mean zero.

        Args:
            gradients: Gradients with respect to the outputs in ``further`` of all calls, in order.
            sums: Sums of second moments to add to, or ``None``.
        """
        found = [(call, key, inputs) for call in self for key, inputs, _ in call.further]
        for (call, key, inputs), gradient in zip(found, gradients, strict=True):
            if gradient is not None:  # the loss may not depend on this output
                gradient = gradient * len(call.hidden)
                if self.adds_squares:
                    add_squares(self.squares[key], inputs, gradient)
                if sums is not None:
                    sums.add_gradients(key, gradient, None)
        for call in self:
            call.further.clear()

    def finish_batch(self) -> None:
        """Add the squared gradients of matrices that were used several times, summing each gradient over all uses."""
        for call in self:
            for key, pairs in call.repeated.items():
                inputs, gradients = zip(*pairs, strict=True)
                add_squares(self.squares[key], torch.cat(inputs, dim=1), torch.cat(gradients, dim=1))
            call.repeated.clear()


class MomentSums:
    """Sums from which the second moments of inputs and output gradients are computed.

    Args:
        encoder: The dense encoder.
        max_tokens: Number of real tokens after which inputs are no longer added.
    """

    def __init__(self, encoder: Encoder, max_tokens: float) -> None:
        self.max_tokens = {layer: max_tokens * encoder.num_runs(layer) for layer in range(encoder.num_layers)}
        self.inputs: dict[tuple[int, str], Covariance] = {}
        self.tokens: dict[tuple[int, str], int] = {}  # on the host, so that comparisons do not wait for the GPU
        self.gradients: dict[tuple[int, str], Tensor] = {}
        for key, linear in encoder.linears():
            device, width = linear.weight.device, linear.out_features
            shape = (width, width) if key[1] in CLOSING else (width,)
            self.gradients[key] = torch.zeros(shape, dtype=torch.float64, device=device)
            if key[1] == input_of(key[1]):
                self.inputs[key] = Covariance(linear.in_features, device)
                self.tokens[key] = 0

    def add_inputs(self, calls: Iterable[EncoderCall]) -> None:
        """Add the inputs of the matrices in calls of the encoder, at real tokens, and release them."""
        for call in calls:
            for key, inputs in call.inputs:
                if key in self.inputs and self.tokens[key] < self.max_tokens[key[0]]:
                    self.inputs[key].add(_token_rows(inputs, call.rows))
                    self.tokens[key] += call.num_tokens
            call.inputs.clear()

    def add_gradients(self, key: tuple[int, str], gradients: Tensor, rows: Tensor | None) -> None:
        """Add the gradients of the batch's mean loss with respect to a matrix's outputs, at the given positions.

        Args:
            key: Layer index and matrix kind.
            gradients: The gradients, (B, S, N).
            rows: Indices of the positions, (T,); ``None`` for all.
        """
        # The gradient of a sample's own loss is B times its part of the mean loss's gradient.
        g, batch = _token_rows(gradients, rows).float(), len(gradients)
        if self.gradients[key].dim() == 2:
            add_gram(self.gradients[key], g * batch)
        else:
            self.gradients[key] += g.square().sum(0).double() * batch**2

    def finish(self, all_reduce: AllReduce, samples: int) -> list[dict[tuple[int, str], Tensor]]:
        """Return the covariances of inputs, second moments of gradients, and means of inputs; call once.

        Sums are released one by one, to limit peak memory.

        Args:
            all_reduce: Sums a tensor over the processes.
            samples: Number of samples over all processes.
        """
        inputs, gradients, means = {}, {}, {}
        for key in list(self.inputs):
            summed = self.inputs.pop(key)
            inputs[key] = summed.finish(all_reduce)
            means[key] = summed.mean
        for key in list(self.gradients):
            total = self.gradients.pop(key)
            gradients[key] = all_reduce(symmetric_from_lower(total) if total.dim() == 2 else total).div_(samples)
        return [inputs, gradients, means]


@contextmanager
def calibration_hooks(
    encoder: Encoder, squares: dict[tuple[int, str], Tensor], sums: MomentSums | None
) -> Iterator[EncoderCalls]:
    """Register hooks that record the encoder's calls and accumulate squared gradients and second moments.

    Args:
        encoder: The dense encoder.
        squares: Sums of squared weight gradients to add to, (M, N) each.
        sums: Sums of second moments to add to, or ``None``.

    Yields:
        The calls. Clear them before each batch, and set ``in_backward`` while gradients are to be accumulated.
    """
    calls = EncoderCalls(squares)
    encoder_mask: list[Tensor | None] = [None]
    layers, order = encoder.layers, list(encoder.order)
    repeated = {layer for layer in order if order.count(layer) > 1}

    def record_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        encoder_mask[0] = mask_argument(module, args, kwargs)
        calls.run = -1

    def record_run(
        layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.is_grad_enabled():  # a pass that the loss does not depend on, such as that of a teacher
            return args, kwargs
        calls.run = (calls.run + 1) % len(order) if layer in repeated else order.index(layer)
        arguments = encoder.arguments_of(args, kwargs)
        name, hidden = next(iter(arguments.items()))
        if calls.run == 0:
            if not hidden.requires_grad:  # Otherwise keep the graph: a step may compute the gradient of the embeddings.
                hidden = hidden.detach().requires_grad_()
            kind = hidden.device.type
            autocast_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            calls.append(EncoderCall(hidden, encoder_mask[0], autocast_dtype=autocast_dtype))
        if not calls.in_backward:  # where a checkpointed layer runs again
            needed = [each for each in encoder.family.arguments if each in arguments]
            calls[-1].arguments.append({each: calls[-1].detached(arguments[each]) for each in needed})
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, name: hidden}

    def accumulate(
        matrices: dict[tuple[int, str], Columns | None],
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        first = next(iter(matrices))

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            inputs, call = args[0].detach(), calls[-1]
            if (calls.run, first) in call.seen:
                if first[1] in encoder.family.also_read and not calls.in_backward:
                    call.further.append((first, inputs, output))
                return
            call.seen.add((calls.run, first))
            if sums is not None:
                call.inputs.extend((key, inputs) for key in matrices)

            def add_gradient(gradient: Tensor) -> None:
                if not calls.in_backward:
                    return
                for key, columns in matrices.items():
                    part = gradient if columns is None else gradient[..., columns]
                    if calls.adds_squares and key[0] in repeated:
                        call.repeated.setdefault(key, []).append((inputs, part))
                    elif calls.adds_squares:
                        add_squares(squares[key], inputs, part)
                    if sums is not None:
                        sums.add_gradients(key, part, call.rows)
                    if key[1] in CLOSING:  # the gradients of the sublayer's other matrices follow from this one
                        call.has_gradient |= part.flatten(1).abs().amax(1).to(squares[key].dtype).square() > 0

            output.register_hook(add_gradient)  # type: ignore[no-untyped-call]

        return hook

    handles: list[RemovableHandle] = [
        *(owner.register_forward_pre_hook(record_mask, with_kwargs=True) for owner in encoder.owners),
        *(
            layer.register_forward_pre_hook(partial(record_run, number), with_kwargs=True)
            for number, layer in enumerate(layers)
        ),
        *(linear.register_forward_hook(accumulate(matrices)) for linear, matrices in encoder.hook_points()),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _token_rows(states: Tensor, rows: Tensor | None) -> Tensor:
    """Return the rows of (B, S, N) states at some positions, (T, N); without a copy if these are all positions."""
    states = states.flatten(0, 1)
    return states if rows is None else states[rows.to(states.device)]


@torch.no_grad()
def add_squares(square: Tensor, inputs: Tensor, gradients: Tensor) -> None:
    """Add the squared weight gradients of a batch's samples to ``square``.

    Args:
        square: The sum, (M, N).
        inputs: X, (B, S, M).
        gradients: G, the gradients of the batch's mean loss with respect to the outputs, (B, S, N).
    """
    batch = len(inputs)
    buffer = torch.empty_like(square)
    for x, g in zip(inputs, gradients, strict=True):
        torch.mm(x.T.to(square.dtype), g.to(square.dtype), out=buffer)
        # The gradient of a sample's own loss is B times its part of the mean loss's gradient.
        square.addcmul_(buffer, buffer, value=batch**2)
