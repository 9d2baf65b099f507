"""Draw the settings of one fit from a seeded generator."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import Any

MODEL_TYPES = ("bert", "roberta", "electra", "distilbert", "mpnet")
TASKS = ("sequence", "token", "qa", "regression", "multilabel")
#: Losses without a gradient on any sample of the encoder. Pruning is refused.
SILENT = ("zero", "saturated", "all_none", "unused")
#: Losses without a gradient on some samples.
PARTLY_SILENT = ("half_zero", "some_none", "nan")


@dataclass(frozen=True)
class Settings:
    """All settings of one fit, as primitives.

    Args:
        seed: Seeds weights, data and dropout.
        model: The architecture, and how the module holds it.
        data: The loader and the loss.
        pruning: Arguments of ``PGBCallback``.
        trainer: Arguments of the Trainer.
        callbacks: The callbacks in order.
        then: What follows the first fit.
        checks: The expensive checks to make.
    """

    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    pruning: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: tuple[str, ...]
    then: str
    checks: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join(f"  {name}: {value}" for name, value in asdict(self).items())

    @property
    def is_silent(self) -> bool:
        """Whether calibration finds no gradient on any sample."""
        return self.data["loss"] in SILENT


def draw(seed: int, number: int) -> Settings:
    """Return the settings of fit ``number`` of a soak."""
    rng = random.Random(f"{seed} {number}")
    model = _draw_model(rng)
    data = _draw_data(rng, model)
    trainer = _draw_trainer(rng, model, data)
    return Settings(
        seed=rng.randrange(10**6),
        model=model,
        data=data,
        pruning=_draw_pruning(rng, model),
        trainer=trainer,
        callbacks=_draw_callbacks(rng, model, data),
        then=rng.choice(("nothing", "nothing", "resume", "plan", "again", "further", "predict")),
        checks=("onnx",) if rng.random() < 0.02 else (),
    )


def _draw_model(rng: random.Random) -> dict[str, Any]:
    model_type = rng.choice(MODEL_TYPES)
    outside = rng.random() < 0.3
    has_pooler = model_type in ("bert", "roberta", "mpnet")
    model = {
        "model_type": model_type,
        "task": rng.choice(TASKS),
        "hidden": rng.choice((24, 48)),
        "heads": rng.choice((2, 4)),
        "layers": rng.choice((1, 2, 3)),
        "neurons": rng.choice((48, 96)),
        "outside": outside,  # the head is a layer of the module, not of the transformers model
        "pooler": outside and has_pooler and rng.random() < 0.3,
        # MPNet supports no other.
        "attention": "eager" if model_type == "mpnet" else rng.choice(("eager", "sdpa")),
        "dropout": rng.choice((0.0, 0.1)),
        "mode": rng.choice(("train", "train", "eval")),
        "alias": rng.choice((None, None, None, "after", "before", "layers", "towers")),
        "second": rng.choice((None, None, None, None, "frozen", "tower")),
        "compiled": rng.random() < 0.03,
        "follows": rng.random() < 0.7,
        "hooks": rng.random() < 0.1,
    }
    # A hook that is a method of the module makes copies of the model copy the module, which torch cannot do if the
    # model is compiled.
    model["hooks"] &= not model["compiled"]
    return model


def _draw_data(rng: random.Random, model: dict[str, Any]) -> dict[str, Any]:
    loaders = (
        ("ordered", 2),
        ("shuffled", 4),
        ("generator", 1),
        ("sampler", 2),
        ("batch_sampler", 2),
        ("string_keys", 1),
        ("single_rows", 1),
        ("iterable", 2),
        ("iterator", 1),
        ("batches", 1),
        ("dict", 1),
        ("list", 1),
        ("max_size", 1),
        ("min_size", 1),
        ("max_size_cycle", 1),
        ("calibration_dataloader", 1),
    )
    names, weights = zip(*loaders, strict=True)
    losses = ("ordinary",) * 24 + SILENT + PARTLY_SILENT
    return {
        "loader": rng.choices(names, weights)[0],
        "rows": rng.choice((17, 32, 48)),
        "batch_size": rng.choice((1, 4, 8, 8)),
        "length": rng.choice((4, 9, 16)),
        "variable": rng.random() < 0.5,
        "mask": rng.random() < 0.7,
        "loss": rng.choice(losses),
        # The transformers model computes the loss.
        "labels_inside": not model["outside"] and model["second"] != "tower" and rng.random() < 0.3,
        "datamodule": rng.random() < 0.3,
        "returns_dict": rng.random() < 0.3,
    }


def _draw_pruning(rng: random.Random, model: dict[str, Any]) -> dict[str, Any]:
    preset = rng.choice(("default", "default", "balanced", "paper"))
    pruning: dict[str, Any] = {"preset": preset, "pruning_ratio": rng.choice((0.1, 0.3, 0.5, 0.6, 0.8, 0.9, 0.95))}
    search = pruning["search"] = rng.choice((None, None, "groups", "shapes"))
    by_shapes = (search or ("shapes" if preset == "default" else "groups")) == "shapes"
    if by_shapes and rng.random() < 0.3:
        pruning["budget"] = "flops"
    if by_shapes and rng.random() < 0.01:
        pruning |= {"pruning_ratio": None, "target_speedup": 1.3, "latency_batch_size": 2, "latency_length": 16}
    pruning["compensation"] = rng.choice((None, None, True, False))
    pruning["permutation"] = rng.choice((None, None, "greedy", "balanced", "compensated"))
    if pruning["compensation"] is False and pruning["permutation"] == "compensated" and rng.random() < 0.9:
        pruning["permutation"] = None
    if not by_shapes and rng.random() < 0.05:
        pruning["importance_threshold"] = rng.choice((1e-12, 1e-6, 1.0))
    pruning["ridge"] = rng.choice((None, None, "auto", 0.01, 1e-6))
    pruning["tolerance"] = rng.choice((None, None, None, 0.02, 0.1, 1e-6))
    pruning["max_groups"] = rng.choice((None, None, 2, 12))
    pruning["calibration_size"] = rng.choice((None,) * 12 + (1, 16, 16, 16, 16, 1000))
    pruning["compensation_tokens"] = rng.choice((None, None, 50))
    pruning["encoder"] = "net" if model["second"] or rng.random() < 0.1 else None
    return {name: value for name, value in pruning.items() if value is not None}


def _draw_trainer(rng: random.Random, model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    # With ddp, torch itself requires that every parameter is used, and Lightning that no step is skipped and that batch
    # samplers are of torch's class.
    is_plain = data["loss"] == "ordinary" and not model["compiled"] and not model["pooler"]
    is_plain = is_plain and data["loader"] not in ("batch_sampler", "string_keys")
    ddp = rng.choice(("ddp", "ddp_find_unused_parameters_true"))
    trainer: dict[str, Any] = {
        "precision": rng.choice(("32-true",) * 6 + ("bf16-mixed", "bf16-true", "64-true")),
        "strategy": ddp if is_plain and rng.random() < 0.1 else "auto",
        "accumulate_grad_batches": rng.choice((1, 1, 2)),
        "gradient_clip_val": rng.choice((None, None, 1.0)),
        "optimizer": rng.choice(("AdamW", "SGD", "Adam")),
        "num_sanity_val_steps": rng.choice((0, 2, -1)),
    }
    return trainer | rng.choice(({"max_epochs": 1}, {"max_epochs": 2}, {"max_steps": 3}, {"max_epochs": 0}))


def _draw_callbacks(rng: random.Random, model: dict[str, Any], data: dict[str, Any]) -> tuple[str, ...]:
    optional = {"report": 0.1, "distillation": 0.2, "best": 0.3, "exact": 0.2, "model_checkpoint": 0.1}
    chosen = ["pgb", *(name for name, share in optional.items() if rng.random() < share)]
    rng.shuffle(chosen)
    return tuple(chosen)
