"""Layers inside wrappers, and hooks on the layers that pruning replaces."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from helpers.tiny import MODEL_TYPES, batches, classifier, logits
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForSequenceClassification

from pgb_lightning import MatrixPlan, PruningConfig, PruningPlan, apply_plan, dense_twin, follow_state_dict, prune
from pgb_lightning.encoders.find import find_encoder
from pgb_lightning.export import export_huggingface
from pgb_lightning.layers.linear import GroupedLinear
from pgb_lightning.modes import uncompiled
from pgb_lightning.surgery.checks import is_pruned


class OwnWrapper(nn.Module):
    """A user's wrapper with a module of its own beside the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Identity()

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.layer(*args, **kwargs)


def compiled(layer: nn.Module) -> nn.Module:
    return torch.compile(layer, backend="eager")  # type: ignore[return-value]


Wrap = Callable[[nn.Module], nn.Module]
WRAPPERS = [compiled, checkpoint_wrapper, OwnWrapper]


def wrapped(wrap: Wrap, model_type: str = "bert", seed: int = 0) -> nn.Module:
    model = classifier(model_type, seed=seed)
    stack = find_encoder(model).stack
    for number, layer in enumerate(stack):
        stack[number] = wrap(layer)
    follow_state_dict(model)
    return model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_layers_are_pruned_as_without_the_wrapper(wrap: Wrap, preset: str, model_type: str) -> None:
    config = PruningConfig.from_preset(preset, pruning_ratio=0.5)
    plain, model = classifier(model_type), wrapped(wrap, model_type)
    plan = prune(plain, batches(), config)
    assert prune(model, batches(), config).matrices == plan.matrices
    torch.testing.assert_close(logits(model), logits(plain))
    stack = find_encoder(model).stack
    assert all(type(layer) is type(wrap(nn.Linear(1, 1))) for layer in stack)
    fresh = wrapped(wrap, model_type, seed=1)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(fresh), logits(plain))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_layers_have_a_dense_twin_and_are_exported(wrap: Wrap, tmp_path: Path) -> None:
    model = wrapped(wrap)
    prune(model, batches(), PruningConfig.from_preset("paper", pruning_ratio=0.5))
    torch.testing.assert_close(logits(dense_twin(model)), logits(model), rtol=1e-4, atol=1e-5)
    if wrap is OwnWrapper:  # it might compute anything
        with pytest.raises(ValueError, match=r"'bert' .*OwnWrapper"):
            export_huggingface(model, tmp_path / "out")
        with pytest.raises(ValueError, match=r"'bert' .*OwnWrapper"):
            model.save_pretrained(tmp_path / "saved")
        return
    export_huggingface(model, tmp_path / "out")
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "by name", state_dict=model.state_dict())
    model.save_pretrained(tmp_path / "by position", True, model.state_dict())
    for folder in ("out", "saved", "by name", "by position"):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_trains_after_pruning(wrap: Wrap) -> None:
    model = wrapped(wrap).train()
    prune(model, batches(), PruningConfig(pruning_ratio=0.5))
    model(**batches(1)[0]).loss.backward()
    assert all(parameter.grad is not None for parameter in find_encoder(model).stack.parameters())


Blocks = tuple[tuple[int, ...], ...]


def halves(size: int) -> Blocks:
    return tuple(range(size // 2)), tuple(range(size // 2, size))


def plan_for(model: nn.Module, changes: dict[tuple[int, str], tuple[Blocks, Blocks]]) -> PruningPlan:
    """Return a plan that keeps all matrices dense but some."""
    encoder = find_encoder(model)
    matrices = []
    for (layer, kind), linear in encoder.linears():
        rows, columns = changes.get((layer, kind), (None, None))
        matrices.append(MatrixPlan(layer, kind, linear.in_features, linear.out_features, rows, columns))
    return PruningPlan(encoder.model_type, tuple(matrices))


def test_forward_and_backward_hooks_run_on_the_new_layers() -> None:
    model = classifier()
    seen: list[str] = []
    linear, intermediate = model.bert.encoder.layer[0].output.dense, model.bert.encoder.layer[0].intermediate
    handles = [
        linear.register_forward_hook(lambda module, args, output: seen.append("forward")),
        linear.register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True),
        linear.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward")),
        intermediate.register_forward_hook(lambda module, args, output: seen.append("intermediate")),
    ]
    apply_plan(model, plan_for(model, {(0, "W2"): (halves(96), halves(24))}))
    assert isinstance(model.bert.encoder.layer[0].output.dense, GroupedLinear)
    model(**batches(1)[0]).loss.backward()
    assert seen == ["intermediate", "before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(**batches(1)[0]).loss.backward()
    assert seen == []


def test_a_hook_that_changes_the_output_is_part_of_the_model() -> None:
    model = classifier()
    linear = model.bert.encoder.layer[0].output.dense
    handle = linear.register_forward_hook(lambda module, args, output: output * 0.5)
    plan = prune(model, batches(), PruningConfig(pruning_ratio=0.5))
    assert plan.pruning_ratio == pytest.approx(0.5, abs=0.01)
    hooked = logits(model)
    handle.remove()
    assert not torch.equal(logits(model), hooked)


@pytest.mark.parametrize(
    ("kinds", "path"),
    [(("Q", "K", "V", "O"), "attention.self.value"), (("W1", "W2"), "intermediate.dense")],
)
def test_hooks_on_a_dropped_sublayer_are_named(kinds: tuple[str, ...], path: str) -> None:
    dropped: dict[tuple[int, str], tuple[Blocks, Blocks]] = {(1, kind): ((), ()) for kind in kinds}
    model = classifier()
    model.bert.encoder.layer[1].get_submodule(path).register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=f"Layer 1 .*{path}"):
        apply_plan(model, plan_for(model, dropped))
    quiet = classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_plan(quiet, plan_for(quiet, dropped))


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("kind", ["O", "W2"])
def test_hooks_of_parameters_that_are_replaced_are_a_warning(register: str, kind: str) -> None:
    model = classifier()
    linear = find_encoder(model).matrix(1, kind)
    plan = plan_for(model, {(1, kind): (halves(linear.in_features), halves(linear.out_features))})
    quiet = copy.deepcopy(model)
    for name, parameter in quiet.named_parameters():
        if not name.startswith("bert.encoder.layer.1"):
            getattr(parameter, register)(lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_plan(quiet, plan)
    getattr(linear.bias, register)(lambda *_: None)
    with pytest.warns(UserWarning, match="register_hook"):
        apply_plan(model, plan)


def test_a_copy_of_a_wrapped_model_is_independent() -> None:
    model = wrapped(OwnWrapper)
    copied = copy.deepcopy(model)
    prune(copied, batches(), PruningConfig(pruning_ratio=0.5))
    assert not is_pruned(find_encoder(model))
    before: Tensor = logits(model)
    assert torch.equal(before, logits(wrapped(OwnWrapper)))


def test_threads_that_calibrate_at_the_same_time_leave_compilation_on() -> None:
    entered, left = Event(), Event()

    def first() -> None:
        with uncompiled():
            entered.set()
            left.wait(10)

    thread = Thread(target=first)
    thread.start()
    entered.wait(10)
    with uncompiled():
        left.set()
        thread.join()
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert len(graphs) == 1


def test_calibration_compiles_nothing() -> None:
    torch.compiler.reset()  # the limit of compiled versions may have been reached in other tests
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    model = classifier()
    stack = find_encoder(model).stack
    for number, layer in enumerate(stack):
        stack[number] = torch.compile(layer, backend=backend)
    prune(model, batches(), PruningConfig(pruning_ratio=0.5))
    assert graphs == []
    logits(model)
    assert graphs
