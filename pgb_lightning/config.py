"""What the user asks for: one frozen, checked, JSON-able record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Permutation = Literal["greedy", "balanced", "compensated"]
Search = Literal["groups", "shapes"]
Budget = Literal["parameters", "flops", "latency"]
Ridge = float | Literal["auto"]

#: The paper's "2K samples from the training data".
CALIBRATION_SIZE = 2048

#: The ridge that ``ridge="auto"`` stands for where no held-out samples can choose one: in predictions, and with too few
#: calibration samples.
DEFAULT_RIDGE = 1e-2

#: Named settings. ``paper`` is the published recipe; ``default`` is what we measured to be better.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"search": "shapes", "permutation": "balanced"},
    "balanced": {"search": "groups", "permutation": "balanced", "ridge": 0.01},
    "paper": {"search": "groups", "permutation": "greedy", "ridge": 0.01},
}


@dataclass(frozen=True)
class PruningConfig:
    """Settings of one pruning run (the paper's Table A1, with its names).

    Args:
        pruning_ratio: Share of the encoder's Q, K, V, O, W1 and W2 weights to remove, in (0, 1). The paper's
            compression rate is γ = 1 - ``pruning_ratio``.
        importance_threshold: τ, above which a weight counts as important; a float, or ``"auto"`` to find the
            τ that meets ``pruning_ratio``. A given τ is used as it is, and the ratio then only bounds how
            many feed-forward sublayers are reached (Algorithm 1).
        search: What is chosen among: ``"groups"`` is the paper's Algorithm 1, group numbers by τ; ``"shapes"``
            chooses the number of heads, neurons and groups of every sublayer at once, so that the loss predicted
            after compensation is least.
        budget: What ``pruning_ratio`` is a share of, under ``search="shapes"``: weights; FLOPs of a sequence of
            ``latency_length`` tokens; or the time that the encoder's layers take on this device, for which the
            shapes are measured.
        target_speedup: How many times faster the encoder's layers shall be; takes the place of ``pruning_ratio``
            and budgets time.
        latency_batch_size: Sequences in a batch for which time is budgeted.
        latency_length: Tokens of each; of the sequence for which FLOPs are, too.
        max_groups: G_max, the largest number of groups; a matrix that would need more is pruned whole.
        num_permutations: N_perm, how often rows and columns are sorted for each block.
        permutation: How weights are gathered into blocks: ``"greedy"`` is the paper's alternating sort,
            ``"balanced"`` improves its result by balanced assignment, ``"compensated"`` assigns by what is lost after
            compensation and lets W1 and W2 group the neurons alike where both have as many groups.
        compensation: Whether the kept weights are refitted by least squares (Eq. 4).
        compensation_tokens: Tokens of the calibration samples, counted without padding, on which the weights are
            refitted; batches beyond them still count for importance. Bounds time and memory.
        ridge: Weight of the pull towards the original weights in Eq. 4, as a share of the mean input power; or
            ``"auto"`` to choose it for each matrix by the error on a fifth of the calibration samples, held out.
        tolerance: Largest accepted distance from ``pruning_ratio`` under ``importance_threshold="auto"``.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range; the message names it, its value and what is allowed.

    Example:
        >>> PruningConfig.from_preset("paper", pruning_ratio=0.88).permutation
        'greedy'
    """

    pruning_ratio: float = 0.5
    importance_threshold: float | Literal["auto"] = "auto"
    search: Search = "shapes"
    budget: Budget = "parameters"
    target_speedup: float | None = None
    latency_batch_size: int = 8
    latency_length: int = 128
    max_groups: int = 6
    num_permutations: int = 6
    permutation: Permutation = "balanced"
    compensation: bool = True
    compensation_tokens: int = 32768
    ridge: Ridge = "auto"
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        _check_float("pruning_ratio", self.pruning_ratio, 0, 1, "the share of encoder weights to remove, such as 0.5")
        if self.importance_threshold != "auto":
            _check_float("importance_threshold", self.importance_threshold, 0, None, 'a τ above 0, or "auto"')
        _check_count("max_groups", self.max_groups, "the paper uses 6")
        _check_count("num_permutations", self.num_permutations, "the paper uses 6")
        for name, names in {"permutation": Permutation, "search": Search, "budget": Budget}.items():
            if getattr(self, name) not in get_args(names):
                allowed = ", ".join(map(repr, get_args(names)))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        if self.search == "shapes" and self.importance_threshold != "auto":
            raise ValueError(
                f"importance_threshold={self.importance_threshold!r} means nothing to search='shapes', which uses no "
                "threshold: leave it out, or set search='groups' (preset 'paper' or 'balanced')."
            )
        if self.target_speedup is not None:
            _check_float("target_speedup", self.target_speedup, 1, None, "how many times faster, such as 2.0")
            if self.budget == "flops":
                raise ValueError(
                    f"target_speedup={self.target_speedup} budgets time, but budget='flops': leave one of the two out."
                )
            object.__setattr__(self, "budget", "latency")
        if self.budget != "parameters" and self.search != "shapes":
            what = f"budget={self.budget!r}" if self.target_speedup is None else f"target_speedup={self.target_speedup}"
            raise ValueError(
                f"{what} needs search='shapes' (preset 'default'): search='groups' is Algorithm 1, whose budget is "
                "parameters."
            )
        _check_count("latency_batch_size", self.latency_batch_size, "such as 8")
        _check_count("latency_length", self.latency_length, "such as 128")
        if not isinstance(self.compensation, bool):
            raise TypeError(f"compensation={self.compensation!r} must be True or False.")
        if self.permutation == "compensated" and not self.compensation:
            raise ValueError(
                "permutation='compensated' groups weights by what compensation leaves, but compensation=False: set it "
                "to True, or permutation to 'balanced'."
            )
        _check_count("compensation_tokens", self.compensation_tokens, "give many times the encoder's width")
        if self.ridge != "auto":
            _check_float("ridge", self.ridge, 0, None, 'a small share of the input power, such as 0.01, or "auto"')
        _check_float("tolerance", self.tolerance, 0, 1, "a distance between ratios, such as 0.005")

    @property
    def cut(self) -> float:
        """The share of the budget's unit that is to be removed."""
        return self.pruning_ratio if self.target_speedup is None else 1 - 1 / self.target_speedup

    @property
    def needs_moments(self) -> bool:
        """Whether calibration must collect second moments for these settings."""
        return self.search == "shapes" or self.permutation == "compensated"

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> PruningConfig:
        """Build a named preset, with some settings replaced.

        Args:
            preset: One of :data:`PRESETS`.
            overrides: Settings that replace the preset's; ``None`` leaves the preset's value.

        Raises:
            TypeError: An override names no setting, or has the wrong type.
            ValueError: ``preset`` is unknown, or a setting is out of range.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} is unknown; choose one of {', '.join(map(repr, PRESETS))}.")
        given = {name: value for name, value in overrides.items() if value is not None}
        known = {field.name for field in fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise TypeError(f"PruningConfig has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        return cls(**{**PRESETS[preset], **given})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON primitives."""
        return asdict(self)


def ridge_or_default(ridge: Ridge) -> float:
    """Return ``ridge``, or :data:`DEFAULT_RIDGE` for ``"auto"``."""
    return DEFAULT_RIDGE if ridge == "auto" else ridge


def _check_float(name: str, value: Any, low: float, high: float | None, remedy: str) -> None:
    """Require a finite number strictly between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number: {remedy}.")
    if not (low < value < (float("inf") if high is None else high)):
        span = f"above {low}" if high is None else f"strictly between {low} and {high}"
        raise ValueError(f"{name}={value!r} is out of range: it must be {span}; give {remedy}.")


def _check_count(name: str, value: Any, remedy: str) -> None:
    """Require a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be a whole number; {remedy}.")
    if value < 1:
        raise ValueError(f"{name}={value!r} is out of range: it must be at least 1; {remedy}.")
