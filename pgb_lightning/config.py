"""``PruningConfig``: the settings of a pruning run, validated and JSON-serializable."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Permutation = Literal["greedy", "balanced", "compensated"]
Search = Literal["groups", "shapes"]
Budget = Literal["parameters", "flops", "latency"]
LatencyRuntime = Literal["torch", "onnxruntime"]
Fisher = Literal["auto", "labels", "predictions", "outputs"]
Ridge = float | Literal["auto"]

#: Number of calibration samples: the paper's "2K samples from the training data".
CALIBRATION_SIZE = 2048

#: With ``search="shapes"``, the number of calibration samples from whose gradients the importance of single weights is
#: computed. There, importance is only used to arrange groups, and squaring the gradients of all samples would take a
#: third of the calibration time.
FISHER_SAMPLES = 256

#: The ridge used for ``ridge="auto"`` where it is not chosen on held-out samples: when the search predicts errors, and
#: with too few calibration samples.
DEFAULT_RIDGE = 1e-2

#: Settings by preset name. ``paper`` is the published method; ``default`` scored better in our measurements.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"search": "shapes", "permutation": "balanced"},
    "balanced": {"search": "groups", "permutation": "balanced", "ridge": 0.01},
    "paper": {"search": "groups", "permutation": "greedy", "ridge": 0.01, "fisher": "labels"},
}


@dataclass(frozen=True)
class PruningConfig:
    """Settings of one pruning run, named as in the paper's Table A1 where it lists them.

    Args:
        pruning_ratio: Fraction of the dense encoder's Q, K, V, O, W1, W2 and W3 weights to remove, in (0, 1), including
            weights that an earlier pruning removed. The paper's compression rate is γ = 1 - ``pruning_ratio``.
        importance_threshold: τ, the importance above which a weight counts as important: a float, or ``"auto"`` to
            choose the τ with the least predicted loss among those that meet ``pruning_ratio``. A given τ is used as is;
            ``pruning_ratio`` then limits how many feed-forward sublayers Algorithm 1 keeps, and a τ that would remove
            more than ``pruning_ratio + tolerance`` is an error.
        search: How the structure is chosen. ``"groups"``: the paper's Algorithm 1, which sets the group number of each
            matrix by τ. ``"shapes"``: a joint search over the number of heads, neurons and groups of every sublayer
            that minimizes the loss predicted after compensation. The importance of single weights then only arranges
            groups, and is computed from the first 256 calibration samples.
        budget: The unit of ``pruning_ratio`` with ``search="shapes"``. ``"parameters"``: weights. ``"flops"``: FLOPs of
            one sequence of ``latency_length`` tokens. ``"latency"``: run time of the encoder's layers, computed from
            measurements of all shapes on this device.
        target_speedup: Speedup over the dense encoder's layers to reach. It replaces ``pruning_ratio`` and sets
            ``budget="latency"``.
        latency_batch_size: Batch size, in sequences, at which latency is measured.
        latency_length: Sequence length, in tokens, at which latency is measured and FLOPs are counted.
        latency_runtime: The runtime in which latency is measured: ``"torch"``, or ``"onnxruntime"`` for models that
            will be served with it. The latter exports layers to ONNX, which takes minutes the first time, and requires
            the CPU and the extra ``onnx``.
        max_groups: G_max, the largest number of groups. Algorithm 1 removes a matrix that would need more.
        width_multiple: With ``search="shapes"``, the numbers of kept neurons, of features of the kept heads, and of
            rows and columns of blocks are multiples of this number, such as 8, 16 or 64 for the tensor cores of a GPU.
            Dense matrices keep their sizes.
        num_permutations: N_perm, the maximum number of row and column sorts for each block (Algorithm 2).
        permutation: How weights are arranged into blocks. ``"greedy"``: the paper's alternating sort. ``"balanced"``:
            improves the greedy result by balanced assignment. ``"compensated"``: assigns rows and columns by the error
            that remains after compensation, and gives W1 and W2 the same grouping of neurons where both have the same
            number of groups.
        compensation: Whether to refit the kept weights by least squares (Eq. 4).
        compensation_tokens: Number of calibration tokens, not counting padding, on which the weights are refitted.
            Later batches still contribute to the gradients. This limits time and memory.
        ridge: λ, the strength of the penalty in Eq. 4 on the distance from the original weights, as a fraction of the
            mean input power; or ``"auto"`` to choose it for each matrix by the error on a held-out fifth of the
            calibration samples.
        fisher: The loss whose gradients calibration collects. ``"labels"``: the loss with the data's labels, as in the
            paper. ``"predictions"``: the negative log-likelihood of labels drawn from the model's own predictions.
            ``"outputs"``: random directions of its logits or, without a head, of its last hidden states. The last two
            need no labels. ``"auto"``: labels if there are any, else predictions, else outputs; the plan records which.
        fisher_temperature: Temperature by which the logits are divided before ``fisher="predictions"`` draws labels.
        tolerance: Largest distance from ``pruning_ratio`` that planning accepts, as a fraction of all weights (or of
            the budget's unit). No plan removes more than ``pruning_ratio + tolerance``, except with
            ``budget="latency"``, since measured times vary. If no plan is close enough, one that removes less is used;
            a warning is issued for distances above 0.01 (0.03 for ``budget="latency"``).

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of range. The message names the setting, its value and the allowed values.

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
    latency_runtime: LatencyRuntime = "torch"
    max_groups: int = 6
    width_multiple: int = 1
    num_permutations: int = 6
    permutation: Permutation = "balanced"
    compensation: bool = True
    compensation_tokens: int = 32768
    ridge: Ridge = "auto"
    fisher: Fisher = "auto"
    fisher_temperature: float = 1.0
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        _check_float("pruning_ratio", self.pruning_ratio, 0, 1, "a fraction of the encoder weights, such as 0.5")
        if self.importance_threshold != "auto":
            _check_float("importance_threshold", self.importance_threshold, 0, None, 'a τ such as 1e-5, or "auto"')
        _check_count("max_groups", self.max_groups, "6 as in the paper")
        _check_count("num_permutations", self.num_permutations, "6 as in the paper")
        _check_count("width_multiple", self.width_multiple, "1, or 64 for tensor cores")
        choices = {"permutation": Permutation, "search": Search, "budget": Budget, "fisher": Fisher}
        for name, names in {**choices, "latency_runtime": LatencyRuntime}.items():
            if getattr(self, name) not in get_args(names):
                allowed = ", ".join(map(repr, get_args(names)))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        if self.search == "shapes" and self.importance_threshold != "auto":
            raise ValueError(
                f"importance_threshold={self.importance_threshold!r} requires search='groups', but search='shapes'. "
                "Remove importance_threshold, or use preset 'paper' or 'balanced'."
            )
        if self.search == "groups" and self.width_multiple != 1:
            raise ValueError(
                f"width_multiple={self.width_multiple} has no effect with search='groups', in which Algorithm 1 "
                "chooses the blocks. Use search='shapes' (preset 'default'), or leave width_multiple out."
            )
        if self.target_speedup is not None:
            _check_float("target_speedup", self.target_speedup, 1, None, "a speedup such as 2.0")
            if self.budget == "flops":
                raise ValueError(
                    f"target_speedup={self.target_speedup} sets budget='latency', but budget='flops' was given. Remove "
                    "one of the two settings."
                )
            object.__setattr__(self, "budget", "latency")
        if self.budget != "parameters" and self.search != "shapes":
            what = f"budget={self.budget!r}" if self.target_speedup is None else f"target_speedup={self.target_speedup}"
            raise ValueError(
                f"{what} needs search='shapes', but search='groups' (Algorithm 1) supports budget='parameters' only. "
                "Use preset 'default'."
            )
        if self.latency_runtime != "torch" and self.budget != "latency":
            raise ValueError(
                f"latency_runtime={self.latency_runtime!r} has no effect with budget={self.budget!r}, for which no "
                "latency is measured. Set target_speedup or budget='latency', or leave latency_runtime out."
            )
        _check_count("latency_batch_size", self.latency_batch_size, "a number such as 8")
        _check_count("latency_length", self.latency_length, "a number such as 128")
        if not isinstance(self.compensation, bool):
            raise TypeError(f"compensation={self.compensation!r} must be True or False.")
        if self.permutation == "compensated" and not self.compensation:
            raise ValueError(
                "permutation='compensated' requires compensation=True, but compensation=False. Set compensation=True "
                "or permutation='balanced'."
            )
        _check_count("compensation_tokens", self.compensation_tokens, "many times the hidden size, such as 32768")
        if self.ridge != "auto":
            _check_float("ridge", self.ridge, 0, None, 'a small fraction such as 0.01, or "auto"')
        _check_float("fisher_temperature", self.fisher_temperature, 0, None, "1.0, or 2.0 for softer predictions")
        if self.fisher not in ("auto", "predictions") and self.fisher_temperature != 1:
            raise ValueError(
                f"fisher_temperature={self.fisher_temperature!r} has no effect with fisher={self.fisher!r}. Use "
                "fisher='predictions', or leave fisher_temperature out."
            )
        _check_float("tolerance", self.tolerance, 0, 1, "a small fraction such as 0.005")

    @property
    def cut(self) -> float:
        """Fraction of the budget's unit (weights, FLOPs or time) to remove: ``pruning_ratio`` or 1 - 1/speedup."""
        return self.pruning_ratio if self.target_speedup is None else 1 - 1 / self.target_speedup

    @property
    def needs_moments(self) -> bool:
        """Whether these settings require calibration to collect second moments."""
        return self.importance_threshold == "auto" or self.permutation == "compensated"

    @property
    def fisher_samples(self) -> float:
        """Number of calibration samples with a gradient from which the importance of single weights is computed."""
        return FISHER_SAMPLES if self.search == "shapes" else math.inf

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> PruningConfig:
        """Create a configuration from a preset.

        Args:
            preset: A key of :data:`PRESETS`.
            overrides: Settings that replace those of the preset; ``None`` keeps the preset's value.

        Raises:
            TypeError: If an override is not a setting or has the wrong type.
            ValueError: If ``preset`` is unknown or a setting is out of range.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} is unknown; choose one of {', '.join(map(repr, PRESETS))}.")
        given = {name: value for name, value in overrides.items() if value is not None}
        known = {field.name for field in fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise TypeError(
                f"PruningConfig has no setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}."
            )
        return cls(**(PRESETS[preset] | given))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary of JSON primitives."""
        return asdict(self)


def ridge_or_default(ridge: Ridge) -> float:
    """Return ``ridge``, or :data:`DEFAULT_RIDGE` for ``"auto"``."""
    return DEFAULT_RIDGE if ridge == "auto" else ridge


def _check_float(name: str, value: Any, low: float, high: float | None, remedy: str) -> None:
    """Raise unless ``value`` is a finite number strictly between ``low`` and ``high`` (``None``: no upper limit)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number, for example {remedy}.")
    if not (low < value < (float("inf") if high is None else high)):
        span = f"above {low}" if high is None else f"strictly between {low} and {high}"
        raise ValueError(f"{name}={value!r} is out of range: it must be {span}. Use {remedy}.")


def _check_count(name: str, value: Any, remedy: str) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an integer, for example {remedy}.")
    if value < 1:
        raise ValueError(f"{name}={value!r} is out of range: it must be at least 1. Use {remedy}.")
