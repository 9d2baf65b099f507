"""What must hold for a module after a fit."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning as L
import torch
import transformers
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import PreTrainedModel

from helpers.soak.data import probe
from helpers.soak.module import SoakModule
from helpers.soak.settings import Settings
from pgb_lightning import PruningPlan, follow_state_dict
from pgb_lightning.callbacks import PGBCallback
from pgb_lightning.cost import encoder_cost
from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface, export_onnx
from pgb_lightning.surgery import attentions
from pgb_lightning.surgery.checks import is_pruned, matches
from pgb_lightning.surgery.dense_twin import dense_twin


class Fault(AssertionError):
    """Something that must hold does not."""


def require(holds: bool, what: str) -> None:
    """Raise a fault unless a statement holds."""
    if not holds:
        raise Fault(what)


@torch.no_grad()
def outputs(module: SoakModule) -> Tensor:
    """Return a module's outputs in eval mode, without changing its mode."""
    modes = {child: child.training for child in module.modules()}
    try:
        return module.eval()(probe(module.settings)).float()
    finally:
        for child, mode in modes.items():
            child.training = mode


def require_equal(left: Tensor, right: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Raise a fault unless two outputs are equal, to a tolerance relative to the largest value."""
    scale = max(1.0, float(right.nan_to_num().abs().max()))
    same = torch.equal(left.isnan(), right.isnan()) and left.shape == right.shape
    difference = float((left - right).abs().nan_to_num().max()) if same else float("inf")
    require(difference <= tolerance * scale, f"{what}: the outputs differ by {difference:.2e}")


def rounding(module: SoakModule) -> float:
    """Return the tolerance after loading into a new module, in which Lightning rounds doubles to single precision."""
    return 1e-5 if module.bias.dtype == torch.float64 else 0.0


def traces(module: SoakModule) -> dict[str, object]:
    """Return what a fit that is refused must leave, apart from weights, and a fit that works must not add to."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [hook for child in module.modules() for name in names for hook in getattr(child, name).values()]
    return {
        # That of attention weights stays: it is a part of the pruned encoder.
        "hooks": sum(hook.__module__ != attentions.__name__ for hook in hooks),
        "attributes": sorted(vars(module)),
        "modes": [child.training for child in module.modules()],
        "gradients": [name for name, p in module.named_parameters() if p.grad is not None],
        "trainable": [name for name, p in module.named_parameters() if p.requires_grad],
    }


def fresh_module(module: SoakModule) -> SoakModule:
    """Return a dense module of the same settings and precision, with other weights."""
    other = SoakModule(module.settings, seed=1)
    follow_state_dict(other)
    return other.to(module.bias.dtype)


def dense_cost(settings: Settings, budget: str, length: int) -> int:
    """Return the cost of the dense encoder."""
    with isolate_rng():
        cost = encoder_cost(find_encoder(SoakModule(settings), "net"), length)
    return cost.flops if budget == "flops" else cost.parameters


def check_module(module: SoakModule, trainer: L.Trainer, pgb: PGBCallback, folder: Path) -> None:
    """Check a fitted module: its size, weights, every way of storing and loading it, its twin and its exports."""
    encoder = find_encoder(module, "net")
    require(pgb.plan is not None, "there is no plan after the fit")
    assert pgb.plan is not None
    check_size(module, encoder, pgb, pgb.plan)
    if module.settings.data["loss"] != "nan":
        require(all(p.isfinite().all() for p in module.parameters()), "a weight is not finite")
    expected = outputs(module)
    if module.settings.data["loss"] != "nan":
        require(bool(expected.isfinite().all()), "an output is not finite")
    check_storage(module, trainer, folder, expected)
    if trainer.precision_plugin is not None:
        check_exports(module, pgb.plan, folder)


def check_size(module: SoakModule, encoder: Encoder, pgb: PGBCallback, plan: PruningPlan) -> None:
    """Require that the plan is the module's, and that no more is removed than asked for."""
    require(matches(encoder, plan), "the encoder does not match the plan")
    config = pgb.config
    if pgb.given_plan is not None or config.importance_threshold != "auto" or config.budget == "latency":
        return
    own = encoder_cost(encoder, config.latency_length)
    kept = own.flops if config.budget == "flops" else own.parameters
    removed = 1 - kept / dense_cost(module.settings, config.budget, config.latency_length)
    require(
        removed <= config.pruning_ratio + config.tolerance + 1e-9,
        f"{removed:.4f} of the {config.budget} are removed; asked for {config.pruning_ratio} + {config.tolerance}",
    )
    require(plan.kept_parameters >= own_parameters(encoder), "the plan keeps less than the encoder has")


def own_parameters(encoder: Encoder) -> int:
    """Return the number of weights of an encoder."""
    return encoder_cost(encoder).parameters


def check_storage(module: SoakModule, trainer: L.Trainer, folder: Path, expected: Tensor) -> None:
    """Require equal outputs from a state dict and a checkpoint."""
    state = module.state_dict()
    names = set(SoakModule(module.settings, seed=2).state_dict())
    # Only layers are replaced, and the table of positions of MPNet if no attention is left.
    replaced = ("layer", "blocks", "relative_attention_bias")
    lost = [n for n in names - state.keys() if not any(part in n for part in replaced)]
    require(not lost, f"the state dict has lost {lost[:3]}")
    other = fresh_module(module)
    other.load_state_dict(copy.deepcopy(state))
    require_equal(outputs(other), expected, "loaded from the state dict")
    require(other.state_dict().keys() == state.keys(), "the loaded module has other names")
    path = folder / "soak.ckpt"
    trainer.save_checkpoint(path)
    if module.settings.model["follows"]:
        loaded = SoakModule.load_from_checkpoint(path, settings=module.settings, seed=3, map_location="cpu")
        require_equal(outputs(loaded.to(module.bias.dtype)), expected, "load_from_checkpoint", rounding(module))


def check_exports(module: SoakModule, plan: PruningPlan, folder: Path) -> None:
    """Require equal outputs from the dense twin and the exported folders."""
    model: PreTrainedModel = copy.deepcopy(module.model).float().eval()  # type: ignore[no-untyped-call]
    expected = model_outputs(model, module.settings)
    require_equal(model_outputs(dense_twin(model), module.settings), expected, "dense twin", 1e-4)
    require(is_pruned(find_encoder(model)) or plan.pruning_ratio == 0, "the encoder is not pruned")
    check_entries(model, module.settings)
    export_huggingface(model, folder / "exported", plan)
    loader = getattr(transformers, auto_class(model))
    loaded = loader.from_pretrained(folder / "exported", attn_implementation=module.settings.model["attention"])
    # The memory of mapped files is aligned in another way, so the last digit may differ.
    require_equal(model_outputs(loaded.eval(), module.settings), expected, "export_huggingface", 1e-6)
    if "onnx" in module.settings.checks:
        check_onnx(model, module.settings, folder, expected)


@torch.no_grad()
def check_entries(model: PreTrainedModel, settings: Settings) -> None:
    """Require one entry a layer in the outputs that have one."""
    layers = settings.model["layers"]
    output = model(**probe(settings), output_hidden_states=True)
    require(len(output.hidden_states) == layers + 1, f"{len(output.hidden_states)} hidden states of {layers} layers")
    if settings.model["attention"] == "eager":
        weights = model(**probe(settings), output_attentions=True).attentions
        require(len(weights) == layers, f"{len(weights)} attentions of {layers} layers")


def auto_class(model: PreTrainedModel) -> str:
    """Return the name of the class that loads an exported model."""
    name = type(model).__name__
    tasks = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    return next((f"AutoModel{task}" for task in tasks if name.endswith(task)), "AutoModel")


@torch.no_grad()
def model_outputs(model: PreTrainedModel, settings: Settings) -> Tensor:
    """Return the outputs of a transformers model."""
    output = model(**probe(settings))
    if settings.model["outside"]:
        return output.last_hidden_state  # type: ignore[no-any-return]
    if settings.model["task"] == "qa":
        return torch.stack((output.start_logits, output.end_logits), -1)
    return output.logits  # type: ignore[no-any-return]


def check_onnx(model: PreTrainedModel, settings: Settings, folder: Path, expected: Tensor) -> None:
    """Require equal outputs from onnxruntime."""
    import onnxruntime

    export_onnx(model, folder / "onnx")
    session = onnxruntime.InferenceSession(folder / "onnx" / "onnx" / "model.onnx")
    batch = probe(settings)
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    names = {given.name for given in session.get_inputs()}
    if "token_type_ids" in names:
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    found = session.run(None, {name: batch[name].numpy() for name in names})
    stacked = torch.stack([torch.from_numpy(each) for each in found], -1) if len(found) > 1 else torch.tensor(found[0])
    require_equal(stacked, expected, "onnxruntime", 1e-3)
