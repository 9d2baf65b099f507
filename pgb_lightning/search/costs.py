"""The cost of a candidate in the unit of the budget: parameters, FLOPs or seconds on this device."""

from __future__ import annotations

from collections.abc import Sequence

from pgb_lightning.config import PruningConfig
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.search.candidates import Candidate, CandidateCost
from pgb_lightning.search.latency_table import measure_table
from pgb_lightning.surgery.folding import fold


def candidate_cost(encoder: Encoder, candidates: Sequence[Sequence[Candidate]], config: PruningConfig) -> CandidateCost:
    """Return the function that computes the cost of a candidate.

    Args:
        encoder: The dense encoder. With ``budget="latency"``, the shapes of its sublayers are measured.
        candidates: The candidates of every sublayer.
        config: The pruning settings: the budget, and the batch size and sequence length of FLOPs and latency.
    """
    if config.budget == "latency":
        return measure_table(encoder, candidates, config.latency_batch_size, config.latency_length)
    if config.budget == "flops":
        return lambda candidate: candidate_flops(candidate, encoder.attention_unit, config.latency_length)
    return lambda candidate: candidate.parameters


def candidate_flops(candidate: Candidate, attention_unit: int, length: int) -> int:
    """Return the FLOPs of a candidate for one sequence. A multiply-add counts as two.

    Args:
        candidate: The candidate.
        attention_unit: Number of attention features that are removed together.
        length: Number of tokens of the sequence.
    """
    flops = 2 * length * candidate.parameters
    last = fold(candidate.matrices, candidate.sublayer, attention_unit).matrices.get("O")
    if last is not None and last.num_groups:
        flops += 2 * 2 * length**2 * last.rows  # scores Q Kᵀ and their product with V
    return flops
