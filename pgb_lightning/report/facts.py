"""What is known of a run beyond its plan: frozen, JSON-able."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pgb_lightning.plan import PruningPlan
from pgb_lightning.report.maps import Map
from pgb_lightning.report.notes import PruningNotes

#: The stages of a run that have scores, in order.
STAGES = ("dense", "pruned", "re-finetuned")


@dataclass(frozen=True)
class Latency:
    """How long the encoder's layers take, dense and pruned, measured in turn.

    Args:
        batch_size: Sequences in a batch.
        length: Tokens of each.
        device: Where it was measured, in words.
        dense: Seconds a batch of each round, ascending.
        pruned: Likewise.
    """

    batch_size: int
    length: int
    device: str
    dense: tuple[float, ...]
    pruned: tuple[float, ...]


@dataclass(frozen=True)
class Facts:
    """What is known of a run beyond its plan; what is empty is not known.

    Args:
        name: What was pruned, in words.
        plan: The :func:`digest` of the plan that these are facts of.
        scores: Validation scores by stage (one of :data:`STAGES`) and metric.
        flops: FLOPs of one sequence of 128 tokens through the encoder, ``"dense"`` and ``"pruned"``.
        latency: What was measured, one entry a batch size.
        matrix_errors: Measured error of each matrix's outputs, by ``"LAYER.KIND"``.
        sublayer_errors: Of the hidden states behind each sublayer, by ``"LAYER.SUBLAYER"``.
        maps: Importance of each matrix in the order of its blocks, by ``"LAYER.KIND"``.

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
    maps: Mapping[str, Map] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: PruningPlan, notes: PruningNotes | None = None, **known: Any) -> Facts:
        """Make the facts of a plan from what was noted as it was carried out.

        Args:
            plan: The plan.
            notes: What was noted, if anything was.
            known: Other facts.
        """
        notes = notes or PruningNotes()
        return cls(
            plan=digest(plan),
            matrix_errors=_named(notes.errors.matrices),
            sublayer_errors=_named(notes.errors.sublayers),
            maps=_named(notes.maps),
            **known,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON primitives."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # tuples become lists

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Facts:
        """Rebuild facts from :meth:`to_dict`; entries that a newer release knows are left out."""
        known = {name: plain[name] for name in plain if name in {field.name for field in fields(cls)}}
        latency = tuple(
            Latency(**{**entry, "dense": tuple(entry["dense"]), "pruned": tuple(entry["pruned"])})
            for entry in plain.get("latency", ())
        )
        maps = {key: tuple(rows) for key, rows in plain.get("maps", {}).items()}
        return cls(**{**known, "latency": latency, "maps": maps})


def digest(plan: PruningPlan) -> str:
    """Tell plans apart in a word of 16 hexadecimal digits."""
    return hashlib.sha256(plan.to_json().encode()).hexdigest()[:16]


def _named(entries: Mapping[tuple[int, Any], Any]) -> dict[str, Any]:
    return {f"{layer}.{name}": value for (layer, name), value in entries.items()}
