"""The cost of a candidate in the unit of the budget: parameters, FLOPs or seconds on this device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pgb_lightning.config import LatencyRuntime, PruningConfig
from pgb_lightning.cost import dense_cost, encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import SUBLAYERS, Sublayer
from pgb_lightning.latency import latency_ratio, layer_arguments
from pgb_lightning.plan import MatrixPlan
from pgb_lightning.runtimes.requirements import require_runtime
from pgb_lightning.search.candidates import Candidate, CandidateCost
from pgb_lightning.search.latency_table import measure_table
from pgb_lightning.shapes import Heads, Neurons
from pgb_lightning.surgery.checks import is_pruned
from pgb_lightning.surgery.dense_twin import dense_reference
from pgb_lightning.surgery.folding import fold
from pgb_lightning.target_warning import MAX_GAP, UNITS


def candidate_cost(encoder: Encoder, candidates: Sequence[Sequence[Candidate]], config: PruningConfig) -> CandidateCost:
    """Return the function that computes the cost of a candidate.

    Args:
        encoder: The encoder. With ``budget="latency"``, the shapes of its sublayers are measured.
        candidates: The candidates of every sublayer.
        config: The pruning settings: the budget, and the batch size and sequence length of FLOPs and latency.
    """
    runs = {layer: encoder.num_runs(layer) for layer in range(encoder.num_layers)}
    if config.budget == "latency":
        batch_size, length, runtime = config.latency_batch_size, config.latency_length, config.latency_runtime
        table = measure_table(encoder, candidates, batch_size, length, runtime=runtime)
        return lambda candidate: runs[candidate.layer] * table(candidate)
    if config.budget == "flops":
        unit, length = encoder.attention_unit, config.latency_length
        return lambda candidate: runs[candidate.layer] * candidate_flops(candidate, unit, length)
    return lambda candidate: candidate.parameters


def candidate_flops(candidate: Candidate, attention_unit: int, length: int) -> int:
    """Return the FLOPs of one run of a candidate for one sequence. A multiply-add counts as two.

    Args:
        candidate: The candidate.
        attention_unit: Number of attention features that are removed together.
        length: Number of tokens of the sequence.
    """
    flops = 2 * length * candidate.parameters
    *_, last = fold(candidate.matrices, candidate.sublayer, attention_unit).matrices.values()
    if candidate.sublayer == "attention" and last.num_groups:
        flops += 2 * 2 * length**2 * last.rows  # scores Q Kᵀ and their product with V
    return flops


def dense_total(encoder: Encoder, config: PruningConfig) -> float:
    """Return the cost of all sublayers of an encoder before any pruning.

    Args:
        encoder: The encoder. With ``budget="latency"``, dense layers of its architecture are measured.
        config: The pruning settings.
    """
    if config.budget != "latency":
        cost = dense_cost(encoder, config.latency_length)
        return cost.flops if config.budget == "flops" else cost.parameters
    dense = [_dense_candidate(encoder, layer, name) for layer in range(encoder.num_layers) for name in SUBLAYERS]
    return sum(map(candidate_cost(dense_reference(encoder), [dense], config), dense))


def _dense_candidate(encoder: Encoder, layer: int, sublayer: Sublayer) -> Candidate:
    """Return the candidate that keeps all of a dense sublayer."""
    size, kinds = encoder.inner_size(sublayer), encoder.sublayers[sublayer]
    shape = Heads(size // encoder.head_group) if sublayer == "attention" else Neurons(size)
    matrices = (MatrixPlan(layer, kind, *encoder.matrix_size(kind, size), None, None) for kind in kinds)
    return Candidate(layer, sublayer, shape, tuple(matrices))


def check_target(encoder: Encoder, config: PruningConfig) -> None:
    """Check that latency can be measured, and that the target removes more than earlier prunings have removed.

    The target always refers to the dense encoder.

    Raises:
        ModuleNotFoundError: If a package that the runtime needs is not installed.
        ValueError: If the model cannot be measured in the runtime, it does not accept ``latency_length`` tokens, or the
            target does not remove more; the message has both fractions.
    """
    if config.budget == "latency":
        require_runtime(config.latency_runtime)
        _check_weights(encoder, config.latency_runtime)
        _check_length(encoder, config.latency_length)
    if not is_pruned(encoder):
        return
    removed, slack = 1 - _kept_fraction(encoder, config), config.tolerance
    if config.budget == "latency":
        slack = max(slack, 3 * MAX_GAP)  # Measured times vary from run to run.
    least = removed + slack
    if config.cut > least:
        return
    if config.target_speedup is None:
        target, remedy = f"pruning_ratio={config.pruning_ratio}", f"pruning_ratio above {least:.4f}"
    else:
        target = f"target_speedup={config.target_speedup} ({config.cut:.4f})"
        remedy = f"target_speedup above {1 / max(1 - least, 1e-4):.2f}"
    raise ValueError(
        f"The encoder at {encoder.where} is already pruned: {removed:.4f} of the dense encoder's "
        f"{UNITS[config.budget]} is removed, and {target} does not remove more. Use {remedy} to prune it further. To "
        "re-finetune it without pruning, leave out PGBCallback (or the call of prune), or resume with ckpt_path. To "
        "prune it differently, start from the dense fine-tuned model."
    )


def check_runtime_device(runtime: LatencyRuntime, device: str) -> None:
    """Check that a runtime can be measured on a device.

    Args:
        runtime: The runtime.
        device: The type of the device, such as ``"cuda"``.

    Raises:
        ValueError: If the runtime requires the CPU, and the device is another one.
    """
    if runtime != "torch" and device != "cpu":
        raise ValueError(
            f"latency_runtime={runtime!r} measures latency on the CPU, but the model is pruned on {device!r}. Prune it "
            "on the CPU (Trainer(accelerator='cpu')), or use latency_runtime='torch'."
        )


def _check_weights(encoder: Encoder, runtime: LatencyRuntime) -> None:
    """Check that a runtime can measure the weights on their device and in their data type.

    Raises:
        ValueError: If their device or data type differs from that of an exported model.
    """
    check_runtime_device(runtime, encoder.model.device.type)
    dtype = encoder.model.dtype
    if runtime != "torch" and dtype != torch.float32:
        raise ValueError(
            f"latency_runtime={runtime!r} measures single precision, but the encoder at {encoder.where} has weights "
            f"in {str(dtype).removeprefix('torch.')}. Convert it with model.float(), or use latency_runtime='torch'."
        )


def _check_length(encoder: Encoder, length: int) -> None:
    """Check that the model accepts sequences of a length, if it must run for its layers to be measured.

    Raises:
        ValueError: If it does not; the message has the maximum length.
    """
    if length > encoder.max_length:
        try:
            layer_arguments(encoder, 1, length)
        except (IndexError, RuntimeError) as error:  # others have relative or rotary positions
            raise ValueError(
                f"latency_length={length}: the encoder at {encoder.where} accepts at most {encoder.max_length} tokens. "
                f"Use latency_length={encoder.max_length} or less. ({error})"
            ) from error


def _kept_fraction(encoder: Encoder, config: PruningConfig) -> float:
    """Return the cost of an encoder as a fraction of its cost before any pruning."""
    if config.budget == "latency":
        batch_size, length, runtime = config.latency_batch_size, config.latency_length, config.latency_runtime
        return latency_ratio(dense_reference(encoder), encoder, batch_size, length, runtime)
    dense, left = dense_cost(encoder, config.latency_length), encoder_cost(encoder, config.latency_length)
    return left.flops / dense.flops if config.budget == "flops" else left.parameters / dense.parameters
