"""Everything that can be reached from a module is put back as it was; what cannot be put back is named."""

from __future__ import annotations

import array
import collections
import copy
import ctypes
import functools
import itertools
import operator
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import classifier
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from pgb_lightning.callbacks.pruning.snapshot import Snapshot


@dataclass
class Slotted:
    __slots__ = ("count", "late")
    count: int


class Plain:
    shared: list[int] = []  # noqa: RUF012  # what the tests are about
    total = 0

    def __init__(self) -> None:
        self.value = 1


def counter() -> Callable[[], int]:
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count


def changed_by(value: Any, change: Callable[[Any], object]) -> list[str]:
    """Change an object that can be reached from a holder, and put it back."""
    holder = SimpleNamespace(it=value)
    snapshot = Snapshot({"holder": holder})
    change(value)
    named = snapshot.restore()
    assert holder.it is value
    return named


COLLECTIONS = {
    "list": ([1, [2]], lambda it: (it[1].append(3), it.pop(0))),
    "tuple": (([1],), lambda it: it[0].append(2)),
    "dict": ({"a": 1, "b": [2]}, lambda it: (it["b"].clear(), it.pop("a"), it.update(c=3))),
    "default dict": (collections.defaultdict(list, a=[1]), lambda it: (it["a"].append(2), it["new"].append(1))),
    "ordered dict": (collections.OrderedDict(a=1, b=2), lambda it: it.move_to_end("a")),
    "counter": (collections.Counter("aab"), lambda it: it.update("bbb")),
    "set": ({1, 2}, lambda it: it.symmetric_difference_update({2, 3})),
    "deque": (collections.deque([1, 2], maxlen=2), lambda it: it.append(3)),
    "bytearray": (bytearray(b"ab"), lambda it: it.extend(b"c")),
    "array.array": (array.array("i", [1, 2]), lambda it: it.append(3)),
    "shared number": (ctypes.c_int(1), lambda it: setattr(it, "value", 2)),
    "shared numbers": ((ctypes.c_double * 2)(1, 2), lambda it: operator.setitem(it, 0, 3)),
    "namespace": (SimpleNamespace(a=[1]), lambda it: (it.a.append(2), setattr(it, "b", 1), delattr(it, "a"))),
    "slots": (Slotted(1), lambda it: setattr(it, "count", 2)),
    "array of objects": (np.array([[1], None], dtype=object), lambda it: it[0].append(2)),
}


def describe(value: Any) -> Any:
    return list(value) if isinstance(value, ctypes.Array) else repr(value)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_and_objects_are_put_back(name: str) -> None:
    value, change = COLLECTIONS[name]
    before = describe(value)
    assert changed_by(value, change) == []
    assert describe(value) == before  # the order counts, too


def test_a_slot_that_was_empty_is_empty_again() -> None:
    value = Slotted(1)
    changed_by(value, lambda it: setattr(it, "late", 1))
    assert not hasattr(value, "late")


def test_arrays_are_put_back() -> None:
    value, view = np.zeros((2, 3)), np.zeros(4)[1:]
    changed_by([value, view], lambda _: (value.fill(np.nan), view.fill(1)))
    assert not value.any()
    assert not view.any()


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (random.Random(1), lambda it: it.random()),
        (np.random.default_rng(1), lambda it: it.random()),
        (np.random.RandomState(1), lambda it: it.rand()),
        (torch.Generator().manual_seed(1), lambda it: float(torch.rand((), generator=it))),
    ],
)
def test_random_number_generators_are_put_back(generator: Any, draw: Callable[[Any], float]) -> None:
    drawn: list[float] = []
    changed_by(generator, lambda it: drawn.append(draw(it)))
    assert draw(generator) == drawn[0]


def test_functions_and_classes_are_put_back() -> None:
    count, value = counter(), Plain()
    plain = functools.partial(Plain.shared.append, 1)

    def default(seen: list[int] = []) -> None:  # noqa: B006
        seen.append(1)
        default.calls = len(seen)  # type: ignore[attr-defined]

    def change(_: Any) -> None:
        count()
        default()
        plain()
        Plain.total += 1
        Plain.new = 1  # type: ignore[attr-defined]
        value.__class__ = type("Other", (Plain,), {})

    changed_by([count, default, plain, value], change)
    assert (count(), default.__defaults__, vars(default)) == (1, ([],), {})
    assert (Plain.shared, Plain.total, hasattr(Plain, "new"), type(value)) == ([], 0, False, Plain)


def test_what_weak_references_and_bound_methods_lead_to_is_put_back() -> None:
    values = [Plain(), Plain(), Plain()]
    holders = [weakref.ref(values[0]), weakref.WeakValueDictionary(a=values[1]), values[2].__repr__]
    changed_by(holders, lambda _: [setattr(value, "value", 2) for value in values])
    assert [value.value for value in values[:2]] == [1, 1]


def modules() -> Iterator[tuple[str, nn.Module, Callable[[Any], object]]]:
    linear = nn.Linear(2, 2)
    yield "weights", linear, lambda it: nn.init.ones_(it.weight)
    yield "weights through .data", nn.Linear(2, 2), lambda it: it.weight.data.zero_()
    yield "new storage", nn.Linear(2, 2), lambda it: setattr(it.weight, "data", torch.ones(2, 2))
    yield "another type", nn.Linear(2, 2), lambda it: it.double()
    yield "another shape", nn.Linear(2, 2), lambda it: it.weight.data.resize_(3, 3)
    yield "freed storage", nn.Linear(2, 2), lambda it: it.weight.untyped_storage().resize_(0)
    yield "parameter replaced", nn.Linear(2, 2), lambda it: setattr(it, "weight", nn.Parameter(torch.ones(2, 2)))
    yield "requires_grad", nn.Linear(2, 2), lambda it: it.requires_grad_(False)
    yield "gradients", nn.Linear(2, 2), lambda it: it(torch.ones(2)).sum().backward()
    yield "mode", nn.Sequential(nn.Dropout()), lambda it: it[0].eval()
    yield "hooks", nn.Linear(2, 2), lambda it: it.register_forward_hook(print)
    yield "new buffer", nn.Linear(2, 2), lambda it: it.register_buffer("queue", torch.ones(3))
    yield "new child", nn.Sequential(), lambda it: it.append(nn.Linear(2, 2))
    yield "buffer rebound", nn.BatchNorm1d(2), lambda it: setattr(it, "running_mean", torch.ones(2))
    yield "statistics", nn.BatchNorm1d(2), lambda it: it(torch.ones(4, 2))
    yield "spectral norm", parametrizations.spectral_norm(nn.Linear(2, 2)), lambda it: it(torch.ones(1, 2))
    yield "parametrized later", nn.Linear(2, 2), lambda it: parametrizations.weight_norm(it)
    yield "lazy", nn.Sequential(nn.LazyLinear(2)), lambda it: it(torch.ones(1, 3))
    yield "scripted", torch.jit.script(nn.BatchNorm1d(2)), lambda it: it(torch.ones(4, 2))


MODULES = {name: (module, change) for name, module, change in modules()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_put_back(name: str) -> None:
    module, change = MODULES[name]

    def state() -> Any:
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        if name == "lazy":
            tensors = {}
        return {
            "tensors": {
                key: (id(value), value.tolist(), value.requires_grad, value.grad) for key, value in tensors.items()
            },
            "types": [(type(child), child.training, repr(child)) for child in module.modules()],
            "hooks": [len(child._forward_hooks) for child in module.modules() if name == "hooks"],
            "kinds": [type(value) for value in module.parameters()],
        }

    if name == "scripted":  # Its tensors get new Python objects.
        before = copy.deepcopy(module.state_dict())
        changed_by(module, change)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        return
    before = state()
    assert changed_by(module, change) == []
    assert state() == before


def tensors() -> Iterator[tuple[str, Any]]:
    storage = torch.zeros(4)
    yield "views of one storage", [storage, storage[:2], storage.view(2, 2)]
    yield "expanded", torch.zeros(1).expand(5)
    yield "NaN", torch.full((2,), float("nan"))
    yield "shared memory", torch.zeros(2).share_memory_()
    yield "sparse", torch.eye(3).to_sparse()
    yield "half", torch.zeros(2, dtype=torch.bfloat16)
    yield "empty", torch.zeros(0)
    yield "complex", torch.zeros(2, dtype=torch.complex64)
    with torch.inference_mode():
        yield "inference", torch.zeros(2)


@pytest.mark.parametrize(("name", "value"), [pytest.param(*case, id=case[0]) for case in tensors()])
def test_tensors_of_every_kind_are_put_back(name: str, value: Any) -> None:
    first = value[0] if isinstance(value, list) else value
    before = first.clone()

    def change(_: Any) -> None:
        with torch.inference_mode():
            (first.untyped_storage().fill_(1) if first.layout is torch.strided else first.mul_(2))

    assert changed_by(value, change) == []
    assert torch.equal(first.to_dense().nan_to_num(9), before.to_dense().nan_to_num(9))


def test_a_buffer_that_got_a_graph_is_a_leaf_again() -> None:
    weight, total = torch.ones(2, requires_grad=True), torch.zeros(2)
    changed_by([weight, total], lambda _: total.add_(weight))
    assert (total.requires_grad, total.grad_fn, total.tolist()) == (False, None, [0, 0])


def test_meta_tensors_and_odd_objects_are_no_problem() -> None:
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no attributes")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("not comparable")

        __hash__ = None  # type: ignore[assignment]

        @property
        def broken(self) -> int:
            raise RuntimeError("a property that raises")

    class Locked:
        def __setattr__(self, name: str, value: Any) -> None:
            raise RuntimeError("read-only")

    cycle: list[Any] = [torch.zeros(2, device="meta"), Odd(), Locked(), threading.Lock(), threading.local(), print, Odd]
    cycle += [cycle, type, np, iter, weakref.proxy(Plain()), torch.float32, np.float32(2)]
    assert changed_by(cycle, lambda it: it.append(1)) == []
    assert cycle[-1] != 1


def test_an_optimizer_is_put_back() -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = copy.deepcopy([module.state_dict(), optimizer.state_dict(), schedule.state_dict()])

    def step(_: Any) -> None:
        module(torch.ones(2)).sum().backward()
        optimizer.step()
        schedule.step()

    assert changed_by([optimizer, schedule], step) == []
    assert repr([module.state_dict(), optimizer.state_dict(), schedule.state_dict()]) == repr(before)
    assert module.weight.grad is None


def numbers() -> Iterator[int]:
    yield from range(9)


@pytest.mark.parametrize(
    "stream",
    [
        numbers(),
        iter([1, 2, 3]),
        iter({1, 2, 3}),
        zip([1, 2], [3, 4], strict=True),
        map(abs, iter([1, 2])),
        itertools.count(),
        itertools.cycle([1, 2]),
        enumerate("abc"),
        (number for number in [1, 2]),
        iter(DataLoader(range(4))),  # type: ignore[arg-type]
    ],
    ids=lambda stream: type(stream).__name__,
)
def test_iterators_that_advance_are_named(stream: Iterator[Any]) -> None:
    assert changed_by({"it": stream}, lambda it: None) == []
    assert changed_by({"it": stream}, lambda it: next(it["it"])) == ["holder.it['it']"]


def test_files_are_set_back_or_named(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("a\nb\n")
    with (tmp_path / "rows").open() as read, (tmp_path / "log").open("w") as written:
        assert changed_by(read, lambda it: next(it)) == []
        assert read.readline() == "a\n"
        assert changed_by(written, lambda it: it.write("c")) == ["holder.it"]


def test_large_collections_take_little_time() -> None:
    holder = SimpleNamespace(numbers=list(range(1_000_000)), vocabulary={f"{i}": i for i in range(250_000)})
    holder.merges = [(str(i), str(i + 1)) for i in range(50_000)]
    start = time.process_time()
    Snapshot({"holder": holder}).restore()
    assert time.process_time() - start < 2


def test_large_tensors_that_hold_data_are_watched_only() -> None:
    rows = TensorDataset(torch.zeros(2, 500_001), torch.zeros(2))
    snapshot = Snapshot({"holder": DataLoader(rows)})
    rows.tensors[0].add_(1)
    rows.tensors[1].add_(1)
    [named] = snapshot.restore()
    assert named.endswith("tensors[0]")
    assert rows.tensors[1].sum() == 0


def test_a_transformers_model_is_put_back() -> None:
    model = classifier()
    before = copy.deepcopy(model.state_dict())

    def change(it: Any) -> None:
        it.config.hidden_act = "relu"
        it.resize_token_embeddings(70)
        it.bert.encoder.layer.pop(0)

    assert changed_by(model, change) == []
    assert model.config.hidden_act == "gelu"
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
