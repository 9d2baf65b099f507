"""Measurements of a run that are not part of its plan, as JSON-serializable records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.maps import ImportanceMap
from pgb_lightning.report.notes import PruningNotes

#: The stages of a run for which scores are reported, in order.
STAGES = ("dense", "pruned", "re-finetuned")


@dataclass(frozen=True)
class Latency:
    """Latency of the encoder's layers, dense and pruned, measured in interleaved rounds.

    Args:
        batch_size: Sequences per batch.
        length: Tokens per sequence.
        device: Description of the device.
        dense: Seconds per batch of the dense layers in each round, ascending.
        pruned: Seconds per batch of the pruned layers in each round, ascending.
    """

    batch_size: int
    length: int
    device: str
    dense: tuple[float, ...]
    pruned: tuple[float, ...]


@dataclass(frozen=True)
class Facts:
    """Measurements of a run that are not part of its plan. Empty fields were not measured.

    Args:
        name: Description of the pruned model.
        plan: The :func:`plan_digest` of the plan that was measured.
        scores: Validation scores by stage (one of :data:`STAGES`) and metric.
        flops: FLOPs of the encoder for one sequence of 128 tokens, ``"dense"`` and ``"pruned"``.
        latency: Measured latency, one entry per batch size.
        matrix_errors: Measured error of the outputs of each matrix, by ``"LAYER.KIND"``.
        sublayer_errors: Measured error of the hidden states after each sublayer, by ``"LAYER.SUBLAYER"``.
        maps: Importance of each matrix in block order, by ``"LAYER.KIND"``.

    Example:
        >>> facts = Facts(scores={"dense": {"val_accuracy": 0.9}})
        >>> Facts.from_dict(facts.to_dict()) == facts
        True
    """

    name: str = ""
    plan: str = ""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flops: Mapping[str, int] = field(default_factory=dict)
    latency: tuple[Latency, ...] = ()
    matrix_errors: Mapping[str, float] = field(default_factory=dict)
    sublayer_errors: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, ImportanceMap] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: PruningPlan, notes: PruningNotes | None = None, **known: Any) -> Facts:
        """Create the facts of a plan from the notes recorded during pruning.

        Args:
            plan: The plan.
            notes: The notes, if any were recorded.
            known: Values of other fields.
        """
        notes = notes or PruningNotes()
        return cls(
            plan=plan_digest(plan),
            matrix_errors=_flatten_keys(notes.errors.matrices),
            sublayer_errors=_flatten_keys(notes.errors.sublayers),
            maps=_flatten_keys(notes.maps),
            **known,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON primitives."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # tuples become lists

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Facts:
        """Create facts from the result of :meth:`to_dict`. Unknown entries, as of a newer release, are ignored."""
        names = {field.name for field in fields(cls)} - {"latency", "maps"}
        known = {name: value for name, value in plain.items() if name in names}
        latency = tuple(
            Latency(
                batch_size=entry["batch_size"],
                length=entry["length"],
                device=entry["device"],
                dense=tuple(entry["dense"]),
                pruned=tuple(entry["pruned"]),
            )
            for entry in plain.get("latency", ())
        )
        maps = {key: tuple(rows) for key, rows in plain.get("maps", {}).items()}
        return cls(**known, latency=latency, maps=maps)


def plan_digest(plan: PruningPlan) -> str:
    """Return a hash of a plan, 16 hexadecimal digits."""
    return hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]


def _flatten_keys(entries: Mapping[tuple[int, Any], Any]) -> dict[str, Any]:
    return {f"{layer}.{name}": value for (layer, name), value in entries.items()}
