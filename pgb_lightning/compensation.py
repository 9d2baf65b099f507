"""Weight compensation: refit what is left of each matrix by least squares (Eq. 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pgb_lightning.architectures import SUBLAYERS, Encoder, Sublayer
from pgb_lightning.calibration import AllReduce, LayerInput
from pgb_lightning.folding import fold
from pgb_lightning.linear import ConstantLinear, GroupedLinear
from pgb_lightning.modes import eval_mode
from pgb_lightning.plan import PruningPlan
from pgb_lightning.surgery import check_plan, prune_layer, select


def compensate(
    encoder: Encoder,
    plan: PruningPlan,
    inputs: list[LayerInput],
    ridge: float,
    all_reduce: AllReduce = lambda tensor: tensor,
    track: Callable[[range], Iterable[int]] = lambda layers: layers,
) -> None:
    """Carry out a plan layer by layer, refitting the kept weights to the dense model's outputs (Eq. 4).

    Two streams of hidden states run through the encoder side by side: the dense model's, and that of the model
    pruned so far. Every matrix is refitted to give the dense outputs from the *pruned* inputs, so each layer
    also corrects what the earlier ones lost. Padding tokens do not count.

    Args:
        encoder: A dense encoder; it is grouped afterwards, or as it was if anything goes wrong.
        plan: What becomes of its matrices.
        inputs: The first layer's inputs on the calibration samples.
        ridge: Pull towards the original weights, as a share of the mean input power.
        all_reduce: Sums a tensor over the processes that share the calibration.
        track: Goes over the layers, to show progress.

    Raises:
        ValueError: The plan does not fit the encoder.
    """
    check_plan(encoder, plan)
    stack = encoder.model.get_submodule(encoder.architecture.layers)
    assert isinstance(stack, nn.ModuleList)
    streams = [Stream(given, encoder.model.device) for given in inputs]
    originals: list[nn.Module] = []
    exact = True  # nothing pruned so far, so both streams are the same and there is nothing to refit
    with eval_mode(encoder.model), torch.no_grad():
        try:
            for layer in track(range(plan.num_layers)):
                originals.append(copy.deepcopy(stack[layer]))
                prune_layer(encoder, plan, layer)
                for name in SUBLAYERS:
                    hidden = fold(plan, layer, name, encoder.head_size).hidden
                    sublayer = _Sublayer(encoder, originals[layer], layer, name, hidden, ridge, all_reduce)
                    exact = exact and all(plan.matrix(layer, kind).input_index is None for kind in SUBLAYERS[name])
                    if exact:
                        sublayer.pass_by(streams)
                    else:
                        sublayer.compensate(streams)
        except BaseException:
            for layer, original in enumerate(originals):
                stack[layer] = original
            raise


class Stream:
    """The hidden states of one calibration batch, in the dense and in the pruned model.

    Args:
        given: The first layer's input; both models start from it.
        device: Where the layers run. The states wait in main memory.
    """

    def __init__(self, given: LayerInput, device: torch.device) -> None:
        self.dense = self.pruned = given.hidden
        self.mask = given.attention_mask
        self.tokens = given.tokens
        self.device = device

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return the real tokens' states in the pruned and in the dense model, (T, d) each."""
        return self.pruned[self.tokens].to(self.device), self.dense[self.tokens].to(self.device)

    def real(self, states: Tensor) -> Tensor:
        """Return the real tokens' rows of (B, S, ...) states on the device: (T, ...)."""
        return states[self.tokens.to(states.device)]

    def run(self, encoder: Encoder, layer: nn.Module, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Run one sublayer on (B, S, d) hidden states."""
        hidden = hidden.to(self.device)
        if sublayer == "attention":
            return encoder.architecture.attend(layer, hidden, self.mask).cpu()
        return encoder.architecture.feed(layer, hidden).cpu()


class Moments:
    """Centred second moments of inputs x (T, M) and targets y (T, N), block by block, in float64.

    Args:
        rows: Inputs of each block, (G, m).
        columns: Targets of each block, (G, n).
        num_inputs: M.
        num_targets: N.
    """

    def __init__(self, rows: Tensor, columns: Tensor, num_inputs: int, num_targets: int) -> None:
        (groups, m), (_, n) = rows.shape, columns.shape
        zeros = partial(torch.zeros, dtype=torch.float64, device=rows.device)
        self.rows, self.columns = rows, columns
        self.power = zeros(groups, m, m)
        self.cross = zeros(groups, m, n)
        self.mean_x = zeros(num_inputs)
        self.mean_y = zeros(num_targets)
        self.count = zeros(1)
        self.origin = zeros(num_inputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of tokens."""
        # Products are made in single precision and summed up in double. Measured from the first batch's mean,
        # which drops out of all centred moments, they lose no digits to inputs far from zero.
        if self.count == 0:
            self.origin = x.mean(0, dtype=torch.float64)
        x = x.float() - self.origin.float()
        y = y.float()
        blocks = x[:, self.rows].permute(1, 2, 0)
        self.power += torch.bmm(blocks, blocks.transpose(1, 2))
        self.cross += torch.bmm(blocks, y[:, self.columns].transpose(0, 1))
        self.mean_x += x.sum(0, dtype=torch.float64)
        self.mean_y += y.sum(0, dtype=torch.float64)
        self.count += len(x)

    def finish(self, all_reduce: AllReduce) -> None:
        """Sum over processes and take out the means."""
        self._measure_from_zero()  # processes have origins of their own
        for name in ("power", "cross", "mean_x", "mean_y", "count"):
            setattr(self, name, all_reduce(getattr(self, name)))
        self.mean_x /= self.count
        self.mean_y /= self.count
        x, y = self.mean_x[self.rows], self.mean_y[self.columns]
        self.power -= self.count * x.unsqueeze(2) * x.unsqueeze(1)
        self.cross -= self.count * x.unsqueeze(2) * y.unsqueeze(1)

    def _measure_from_zero(self) -> None:
        """Turn sums over x - origin into sums over x."""
        origin = self.origin.float().double()
        shift, total = origin[self.rows], self.mean_x[self.rows]
        self.power += shift.unsqueeze(2) * total.unsqueeze(1) + total.unsqueeze(2) * shift.unsqueeze(1)
        self.power += self.count * shift.unsqueeze(2) * shift.unsqueeze(1)
        self.cross += shift.unsqueeze(2) * self.mean_y[self.columns].unsqueeze(1)
        self.mean_x += self.count * origin


def solve(power: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor:
    """Solve Eq. 4 for the weights of blocks: all outputs of a block share its inputs, so one factor serves all.

    Minimises the squared error of each block's outputs plus λ times the squared distance from ``start``. The
    error is therefore never above that of ``start``.

    Args:
        power: Centred X̂ᵀX̂ of each block's inputs, (G, m, m).
        cross: Centred X̂ᵀY of each block's inputs and outputs, (G, m, n).
        start: The weights before, (G, m, n).
        ridge: λ as a share of the mean diagonal of ``power``.

    Returns:
        The weights of the blocks, (G, m, n), in float64.
    """
    power, cross, start = power.double(), cross.double(), start.double()
    eye = torch.eye(power.shape[1], dtype=power.dtype, device=power.device)
    damping = (ridge * power.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(1e-30).view(-1, 1, 1)
    while True:
        factor, failed = torch.linalg.cholesky_ex(power + damping * eye)
        if not failed.any() or not torch.isfinite(power).all():
            return torch.cholesky_solve(cross + damping * start, factor)
        damping = damping * torch.where(failed > 0, 10.0, 1.0).view(-1, 1, 1)  # rounding made it indefinite


@dataclass(frozen=True)
class _Sublayer:
    """One sublayer under compensation: as it was, and as it is becoming."""

    encoder: Encoder
    original: nn.Module
    layer: int
    name: Sublayer
    hidden: tuple[int, ...] | None
    ridge: float
    all_reduce: AllReduce

    def compensate(self, streams: list[Stream]) -> None:
        """Refit the matrices in the order in which they act, and move both streams past the sublayer."""
        *opening, closing = SUBLAYERS[self.name]
        if isinstance(self.pruned(closing), ConstantLinear):
            self._refit_constant(closing, streams)
        else:
            self._refit_opening(opening, streams)
            self._refit_closing(closing, streams)
        for stream in streams:
            stream.pruned = stream.run(self.encoder, self.encoder.layers[self.layer], self.name, stream.pruned)

    def pass_by(self, streams: list[Stream]) -> None:
        """Move both streams past a sublayer of which, as of all before it, nothing was pruned."""
        for stream in streams:
            stream.dense = stream.pruned = stream.run(self.encoder, self.original, self.name, stream.dense)

    def pruned(self, kind: str) -> nn.Module:
        """Return what stands for a matrix now."""
        return self.encoder.matrix(self.layer, kind)

    def dense(self, kind: str) -> nn.Linear:
        """Return the dense model's matrix."""
        linear = self.original.get_submodule(self.encoder.architecture.paths[kind])
        assert isinstance(linear, nn.Linear)
        return linear

    def _refit_opening(self, kinds: list[str], streams: list[Stream]) -> None:
        """Refit Q, K and V, or W1: they read the sublayer's input, so no layer needs to run.

        They share one pair of moments, of the dense inputs X and the pruned inputs X̂: the targets are X W, so
        X̂ᵀY is X̂ᵀX W.
        """
        width = self.dense(kinds[0]).in_features
        everything = torch.arange(width, device=self.encoder.model.device).view(1, -1)
        moments = Moments(everything, everything, width, width)
        for stream in streams:
            moments.add(*stream.inputs())
        moments.finish(self.all_reduce)
        for kind in kinds:
            dense, pruned = select(self.dense(kind), self.hidden, of_inputs=False), self.pruned(kind)
            weight = dense.weight.T.double()
            mean_y = moments.mean_y @ weight + (0 if dense.bias is None else dense.bias)
            rows, columns = _blocks(pruned)
            power = moments.power[0][rows.unsqueeze(2), rows.unsqueeze(1)]
            cross = torch.bmm(moments.cross[0][rows], weight[:, columns].transpose(0, 1))
            _refit(pruned, power, cross, moments.mean_x, mean_y, self.ridge)

    def _refit_closing(self, kind: str, streams: list[Stream]) -> None:
        """Refit O or W2, whose input depends on the matrices just refitted."""
        dense, pruned = self.dense(kind), self.pruned(kind)
        assert isinstance(pruned, (nn.Linear, GroupedLinear))
        moments = Moments(*_blocks(pruned), pruned.in_features, dense.out_features)
        for stream in streams:
            targets = self._run_dense(stream, dense)
            with _captured(pruned) as calls:
                stream.run(self.encoder, self.encoder.layers[self.layer], self.name, stream.pruned)
            moments.add(stream.real(calls[0][0]), targets)
        moments.finish(self.all_reduce)
        _refit(pruned, moments.power, moments.cross, moments.mean_x, moments.mean_y, self.ridge)

    def _refit_constant(self, kind: str, streams: list[Stream]) -> None:
        """Let a dropped sublayer add the mean of what the dense one added."""
        dense = self.dense(kind)
        moments = Moments(*_blocks(self.pruned(kind)), 0, dense.out_features)
        for stream in streams:
            targets = self._run_dense(stream, dense)
            moments.add(targets[:, :0], targets)
        moments.finish(self.all_reduce)
        _set_bias(self.pruned(kind), moments.mean_y)

    def _run_dense(self, stream: Stream, closing: nn.Linear) -> Tensor:
        """Move the dense stream past the sublayer; return the closing matrix's outputs, (T, N)."""
        with _captured(closing) as calls:
            stream.dense = stream.run(self.encoder, self.original, self.name, stream.dense)
        return stream.real(calls[0][1])


def _blocks(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the inputs (G, m) and outputs (G, n) of a layer's blocks; a whole matrix is one block."""
    if isinstance(module, GroupedLinear):
        return module.input_index.long(), module.output_index.long()
    if isinstance(module, nn.Linear):
        device = module.weight.device
        return (
            torch.arange(module.in_features, device=device).view(1, -1),
            torch.arange(module.out_features, device=device).view(1, -1),
        )
    device = next(module.parameters()).device
    nothing = torch.zeros(0, 0, dtype=torch.long, device=device)
    return nothing, nothing


def _refit(module: nn.Module, power: Tensor, cross: Tensor, mean_x: Tensor, mean_y: Tensor, ridge: float) -> None:
    """Set a layer's weights by Eq. 4, and its bias so that the mean output is right."""
    bias = mean_y.clone()
    if isinstance(module, (GroupedLinear, nn.Linear)):
        whole = isinstance(module, nn.Linear)
        start = module.weight.T.unsqueeze(0) if whole else module.weight
        weight = solve(power, cross, start, ridge)
        rows, columns = _blocks(module)
        bias[columns] -= torch.einsum("gm,gmn->gn", mean_x[rows], weight)
        module.weight.copy_(weight[0].T if whole else weight)
    _set_bias(module, bias)


def _set_bias(module: nn.Module, bias: Tensor) -> None:
    if isinstance(module.bias, Tensor):
        module.bias.copy_(bias)


@contextmanager
def _captured(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the (input, output) of each call of a layer."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    try:
        yield calls
    finally:
        handle.remove()
