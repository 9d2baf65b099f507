"""Weight compensation: refit the kept weights of each matrix by least squares (Eq. 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pgb_lightning.calibration.collect import LayerInput
from pgb_lightning.calibration.moments import AllReduce, Moments
from pgb_lightning.compensation.also_read import add_further_inputs
from pgb_lightning.compensation.errors import FitErrors, relative_error
from pgb_lightning.compensation.head_check import check_heads
from pgb_lightning.compensation.least_squares import LeastSquares
from pgb_lightning.compensation.repeated import fit_runs
from pgb_lightning.compensation.ridge import SplitMoments, choose_ridge
from pgb_lightning.compensation.streams import Stream, captured, idle
from pgb_lightning.config import Ridge
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer
from pgb_lightning.layers.linear import ConstantLinear
from pgb_lightning.layers.matrix import BlockIndex, MatrixLayer, as_matrix
from pgb_lightning.modes import eval_mode, uncached_autocast
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.apply import prune_layer
from pgb_lightning.surgery.build import undone_on_error
from pgb_lightning.surgery.checks import check_plan
from pgb_lightning.surgery.finish import finish
from pgb_lightning.surgery.folding import Hidden
from pgb_lightning.surgery.new_layers import select_features


def compensate(
    encoder: Encoder,
    plan: PruningPlan,
    inputs: list[LayerInput],
    ridge: Ridge,
    all_reduce: AllReduce = lambda tensor: tensor,
    track: Callable[[range], Iterable[int]] = lambda layers: layers,
    errors: FitErrors | None = None,
) -> None:
    """Apply a plan layer by layer, refitting the kept weights to the dense model's outputs (Eq. 4).

    If the encoder was pruned before, "the dense model" is the encoder before this plan is applied.

    The hidden states of the dense model and of the model pruned so far are computed side by side, layer by layer. Every
    matrix is refitted to produce the dense outputs from the *pruned* inputs, so each layer also corrects the errors of
    the previous ones. Padding tokens are ignored.

    Args:
        encoder: An encoder that the plan fits. It is pruned in place, and restored if an error occurs.
        plan: The plan.
        inputs: The first layer's inputs on the calibration samples.
        ridge: Weight of the penalty on the distance from the original weights, as a fraction of the mean input power.
            "auto" chooses it for each matrix on held-out samples, and then fits the weights to all samples.
        all_reduce: Sums a tensor over the processes that share the calibration.
        track: Iterates over the layers, to show progress.
        errors: Records the remaining errors, if given.

    Raises:
        ValueError: If the plan does not fit the encoder, or the family does not declare everything that depends on the
            number of heads.
    """
    check_plan(encoder, plan)
    streams = [Stream(given, encoder.model.device, hold_out=ridge == "auto") for given in inputs]
    originals: list[nn.Module] = []
    dense = [layer.state_dict() for layer in encoder.layers]  # the tensors themselves, not copies
    exact = True  # nothing is pruned so far, so both streams are equal and need no refit
    heads_checked = False
    with eval_mode(encoder.model), torch.no_grad(), uncached_autocast(), undone_on_error(encoder):
        try:
            for layer in track(range(plan.num_layers)):
                originals.append(copy.deepcopy(encoder.layers[layer]))
                features = prune_layer(encoder, plan, layer)
                fits = {
                    name: SublayerFit(
                        encoder=encoder,
                        original=originals[layer],
                        layer=layer,
                        name=name,
                        features=features,
                        ridge=ridge,
                        all_reduce=all_reduce,
                        errors=errors,
                    )
                    for name in SUBLAYERS
                }
                changed = [
                    name for name in fits if any(_changes(plan.matrix(layer, kind)) for kind in plan.sublayers[name])
                ]
                if encoder.num_runs(layer) > 1:
                    exact = exact and not changed  # a change in one run affects the next runs
                    fit = partial(_fit_all, list(fits.values()), exact)
                    fit_runs(encoder, layer, originals[layer], streams, fit, all_reduce, errors)
                    continue
                for stream in streams:
                    stream.go_to(encoder, list(encoder.order).index(layer))
                if streams and not heads_checked:
                    left = features[encoder.sublayers["attention"][-1]]
                    heads_checked = check_heads(encoder, layer, originals[layer], left, streams[0])
                for name, sublayer in fits.items():
                    exact = exact and name not in changed
                    _fit_all([sublayer], exact, streams)
        except BaseException:
            _restore_weights(dense, originals)
            raise
    finish(encoder)


def _fit_all(sublayers: Iterable[SublayerFit], exact: bool, streams: list[Stream]) -> None:
    """Refit sublayers one after another, or only run them if neither they nor any earlier sublayer was pruned."""
    for sublayer in sublayers:
        if exact:
            sublayer.skip(streams)
        else:
            sublayer.compensate(streams)


def _restore_weights(layers: list[dict[str, Tensor]], originals: list[nn.Module]) -> None:
    """Copy weights back into the tensors of the dense layers, some of which are refitted in place."""
    for state, original in zip(layers, originals, strict=False):
        for name, value in original.state_dict().items():
            state[name].copy_(value)


def _changes(matrix: MatrixPlan) -> bool:
    """Return whether a plan removes weights of a matrix."""
    return matrix.input_index is not None and matrix.total_parameters > 0


@dataclass(frozen=True)
class SublayerFit:
    """The compensation of one sublayer.

    Args:
        encoder: The encoder, in which the sublayer is pruned already.
        original: A copy of the layer before pruning.
        layer: Layer index.
        name: The sublayer.
        features: The inner features that are kept for each matrix; ``None`` if all are.
        ridge: Weight of the penalty on the distance from the original weights.
        all_reduce: Sums a tensor over the processes that share the calibration.
        errors: Records the remaining errors, if given.
    """

    encoder: Encoder
    original: nn.Module
    layer: int
    name: Sublayer
    features: Mapping[str, Hidden]
    ridge: Ridge
    all_reduce: AllReduce
    errors: FitErrors | None = None

    def compensate(self, streams: list[Stream]) -> None:
        """Refit the matrices in the order in which they are applied, and move both streams past the sublayer."""
        *opening, closing = self.encoder.sublayers[self.name]
        if isinstance(self._original(closing), ConstantLinear):  # dropped by an earlier pruning: nothing to refit
            for stream in streams:
                stream.dense = stream.run(self.encoder, self.original, self.name, stream.dense)
        elif self.pruned(closing).kept_weights().numel():
            self._refit_opening(opening, streams)
            self._refit_closing(closing, streams)
        else:
            self._refit_constant(closing, streams)
        for stream in streams:
            stream.pruned = stream.run(self.encoder, self.encoder.layers[self.layer], self.name, stream.pruned)
        if self.errors is not None:
            pairs = ((stream.pruned[stream.tokens], stream.dense[stream.tokens]) for stream in streams)
            width, device = self.encoder.hidden_size, self.encoder.model.device
            self.errors.sublayers[self.layer, self.name] = relative_error(pairs, width, device, self.all_reduce)

    def skip(self, streams: list[Stream]) -> None:
        """Move both streams past a sublayer, if neither it nor any before it was pruned."""
        for stream in streams:
            stream.dense = stream.pruned = stream.run(self.encoder, self.original, self.name, stream.dense)
        if self.errors is not None:
            self.errors.matrices |= {(self.layer, kind): 0.0 for kind in self.encoder.sublayers[self.name]}
            self.errors.sublayers[self.layer, self.name] = 0.0

    def pruned(self, kind: str) -> MatrixLayer:
        """Return the layer that holds a matrix now; a part of a fused linear layer must be stored after changes."""
        return as_matrix(self.encoder.matrix(self.layer, kind))

    def dense(self, kind: str) -> nn.Linear:
        """Return the dense model's layer."""
        linear = self._original(kind)
        assert isinstance(linear, nn.Linear)
        return linear

    def _original(self, kind: str) -> nn.Module:
        """Return the layer that held a matrix before."""
        return self.encoder.matrix_in(self.original, kind)

    def _refit_opening(self, kinds: list[str], streams: list[Stream]) -> None:
        """Refit Q, K and V, or W1 and W3: they read the sublayer's input, so no layer needs to run.

        They share the moments of the dense inputs X and the pruned inputs X̂. The targets are X W, so X̂ᵀY is X̂ᵀX W.
        If a matrix also reads other inputs (``Family.also_read``), these are added to its moments.
        """
        width = self.dense(kinds[0]).in_features
        everything = torch.arange(width, device=self.encoder.model.device).view(1, -1)
        of_states = SplitMoments(everything, everything, width, width, self.ridge == "auto")
        of_dense = Moments(everything, everything[:, :0], width, 0)
        for stream in streams:
            inputs, targets = (self.encoder.read(self.original, self.name, states) for states in stream.inputs())
            of_states.add(inputs, targets, stream.held)
            if self.errors is not None:
                of_dense.add(targets, targets[:, :0])
        of_states.finish(self.all_reduce)
        of_dense.finish(self.all_reduce)
        for kind in kinds:
            moments, spread = of_states, of_dense
            if kind in self.encoder.family.also_read:
                read = partial(self.encoder.family.also_read[kind], self.encoder.model)
                moments, spread = add_further_inputs(moments, spread, read, streams, self.all_reduce)
            dense = select_features(self.dense(kind), self.features[kind], of_inputs=False)
            current = self.encoder.matrix(self.layer, kind)
            weight, pruned = dense.weight.T.double(), as_matrix(current)
            mean_y = moments.all.mean_y @ weight + (0 if dense.bias is None else dense.bias)
            explained = self._refit(pruned, moments, partial(_of_states, weight, pruned.index()), mean_y)
            self.encoder.store(self.layer, kind, current)
            if self.errors is not None:
                gram = (spread if pruned.bias is not None else spread.uncentered()).gram[0]
                self.errors.add_matrix((self.layer, kind), float((weight * (gram @ weight)).sum()), explained)

    def _refit_closing(self, kind: str, streams: list[Stream]) -> None:
        """Refit O or W2, whose input depends on the matrices that were just refitted."""
        dense, pruned = self.dense(kind), self.pruned(kind)
        rows, columns = pruned.index()
        moments = SplitMoments(rows, columns, pruned.in_features, dense.out_features, self.ridge == "auto")
        for stream in streams:
            targets = self._run_dense(stream, dense)
            current = self.encoder.matrix(self.layer, kind)
            inputs = stream.run_until(current, self.encoder, self.encoder.layers[self.layer], self.name, stream.pruned)
            moments.add(stream.real(inputs), targets, stream.held)
        moments.finish(self.all_reduce)
        explained = self._refit(pruned, moments, _of_blocks, moments.all.mean_y)
        if self.errors is not None:
            total = moments.all if pruned.bias is not None else moments.all.uncentered()
            self.errors.add_matrix((self.layer, kind), float(total.total_squares), explained)

    def _refit_constant(self, kind: str, streams: list[Stream]) -> None:
        """Set the constant of a dropped sublayer to the mean output of the dense closing matrix."""
        dense, pruned = self.dense(kind), self.pruned(kind)
        rows, columns = pruned.index()
        moments = Moments(rows, columns, 0, dense.out_features)
        for stream in streams:
            targets = self._run_dense(stream, dense)
            moments.add(targets[:, :0], targets)
        moments.finish(self.all_reduce)
        _set_bias(pruned, moments.mean_y)
        if self.errors is not None:
            self.errors.add_matrix((self.layer, kind), float(moments.total_squares), 0.0)

    def _refit(
        self, matrix: MatrixLayer, moments: SplitMoments, problem: Callable[[Moments], LeastSquares], mean_y: Tensor
    ) -> float:
        """Set a layer's weights by Eq. 4, and its bias so that the mean output is exact.

        Without a bias, the weights are fitted to the outputs themselves instead of their deviations from the mean.

        Returns:
            The explained sum of squares: how much of the targets' squared deviations from their mean is reproduced.
        """
        bias, explained = mean_y.clone(), 0.0
        start = matrix.kept_weights()
        if matrix.bias is None:
            problem = partial(_uncentered, problem)
        if start.numel():
            everything = problem(moments.all)
            weight = everything.solve(start, choose_ridge(self.ridge, moments, problem, start))
            rows, columns = matrix.index()
            bias[columns] -= torch.einsum("gm,gmn->gn", moments.all.mean_x[rows], weight)
            start.copy_(weight)
            explained = everything.explained(weight)
        _set_bias(matrix, bias)
        return explained

    def _run_dense(self, stream: Stream, closing: nn.Linear) -> Tensor:
        """Move the dense stream past the sublayer, and return the closing matrix's outputs, (T, N)."""
        paths = [self.encoder.family.paths[kind] for kind in self.encoder.sublayers[self.name]]
        failure: RuntimeError | None = None
        with captured(closing) as calls, idle({path: self.original.get_submodule(path) for path in paths}) as left:
            try:
                stream.dense = stream.run(self.encoder, self.original, self.name, stream.dense)
            except RuntimeError as error:  # such as that of shapes, where pruned and dense layers are mixed
                failure = error
        if failure is not None and (not left or isinstance(failure, torch.OutOfMemoryError)):
            raise failure
        if left:
            raise ValueError(
                f"A copy of layer {self.layer} of the encoder at {self.encoder.where} does not run its own "
                f"{next(path for path in paths if path in left)}, so weights cannot be refitted to its outputs. A "
                f"method in its {self.name} sublayer, such as forward, was replaced on the module by a function that "
                "calls this very module. Restore the method, use a forward hook instead, or set compensation=False."
            ) from failure
        return stream.real(calls[0][1])


def _uncentered(problem: Callable[[Moments], LeastSquares], moments: Moments) -> LeastSquares:
    """Return Eq. 4 for a matrix without a bias, for which means count."""
    return problem(moments.uncentered())


def _of_blocks(moments: Moments) -> LeastSquares:
    """Return Eq. 4 for moments of a matrix's blocks."""
    return LeastSquares(moments.gram, moments.cross, moments.power(moments.rows))


def _of_states(weight: Tensor, index: BlockIndex, moments: Moments) -> LeastSquares:
    """Return Eq. 4 for moments of hidden states, whose targets are the outputs of a dense ``weight``, (M, N)."""
    rows, columns = index
    gram = moments.gram[0][rows.unsqueeze(2), rows.unsqueeze(1)]
    cross = torch.bmm(moments.cross[0][rows], weight[:, columns].transpose(0, 1))
    return LeastSquares(gram, cross, moments.power(rows))


def _set_bias(matrix: MatrixLayer, bias: Tensor) -> None:
    if matrix.bias is not None:
        matrix.bias.copy_(bias)
