"""Undo the side effects of calibration: a snapshot of all objects that can be reached from a module and its data."""

from __future__ import annotations

import enum
import gc
import io
import math
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pgb_lightning.callbacks.pruning.positions import ONE_WAY, position
from pgb_lightning.callbacks.pruning.saved_state import (
    Saver,
    attributes_of,
    class_attributes,
    has_slots,
    save_file,
    savers_of,
    slots_of,
)

#: Objects of exactly these classes are immutable, and so is everything that they refer to.
_CONSTANT = frozenset(
    {type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, range, slice}
    | {types.CodeType, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format}
)
#: Objects that serve the Trainer or the whole process are skipped, with everything that they hold.
_SERVICES = (types.ModuleType, pl.Trainer, Logger, enum.Enum, weakref.ProxyType, weakref.CallableProxyType)
_SERVICE_PACKAGES = {"_thread", "asyncio", "concurrent", "logging", "subprocess", "threading"}
_SERVICE_MODULES = ("multiprocessing.", "torch._dynamo.", "torch._inductor.", "torch.distributed.")
_NO_SERVICES = (torch.nn.Module, Tensor)  # such as a compiled module, whose class is in torch._dynamo
#: Objects that hold training data, which may be large.
_DATA = (pl.LightningDataModule, Dataset, DataLoader, Sampler)
_DATA_PACKAGES = {"datasets", "pandas", "polars", "pyarrow"}
_MAX_DATA_MEMBERS = 1000
_MAX_DATA_ELEMENTS = 1_000_000


#: Objects with the labels by which they appear in paths.
Children = Iterable[tuple[str, Any]]


class Snapshot:
    """The state of all objects that can be reached from some roots, which can be restored in the same objects.

    From an object, its attributes (also those in slots, and those of its class unless it belongs to an installed
    package), members, closures, defaults, bound objects and the targets of weak references are reached. A snapshot
    saves attributes, members, the class, random states, positions of files opened for reading, arrays, and the content,
    storage, ``requires_grad`` and ``grad`` of tensors.

    The Trainer, loggers, threads and processes are skipped. Iterators, generators and other files cannot be restored,
    but :meth:`restore` detects if they have advanced. It does not detect changes of global variables, files on disk,
    other processes and state inside C extensions.

    Args:
        roots: Objects, by name.
        data: Objects that hold training data, by name. In these, and in data sets and loaders, members of collections
            of more than 1,000 are not searched, and tensors and arrays of more than a million elements are not copied;
            changes of such tensors are detected.

    Example:
        >>> bank = {"queue": [1], "stream": iter([1, 2])}
        >>> snapshot = Snapshot({"bank": bank})
        >>> bank["queue"].append(next(bank["stream"]))
        >>> snapshot.restore()
        ["bank['stream']"]
        >>> bank["queue"]
        [1]
    """

    def __init__(self, roots: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> None:
        #: Paths of objects that can only advance.
        self.one_way: list[str] = []
        #: Functions that return the state of objects that cannot be restored, with the states found.
        self._watched: list[tuple[str, Callable[[], Any], Any]] = []
        self._restorers: list[tuple[str, Callable[[], object]]] = []
        self._seen: dict[int, Any] = {}
        self.add(roots)
        self.add(data or {}, hold_data=True)

    def add(self, roots: Mapping[str, Any], hold_data: bool = False) -> None:
        """Save more objects, and those reached from them, unless they are saved already.

        Args:
            roots: Objects, by name.
            hold_data: Whether the objects hold training data.
        """
        with _garbage_collection_paused():
            self._save_all([(name, value, hold_data) for name, value in roots.items()])

    def restore(self) -> list[str]:
        """Restore all objects.

        Returns:
            The paths of objects that have changed and could not be restored.
        """
        failed = [path for path, probe, before in self._watched if probe() != before]
        for path, restore in self._restorers:
            try:
                restore()
            except Exception:  # The other objects must be restored all the same.
                failed.append(path)
        return sorted(failed)

    def _save_all(self, stack: list[tuple[str, Any, bool]]) -> None:
        """Save objects, given as paths, objects, and whether they hold data, and all objects reached from them."""
        while stack:
            path, value, in_data = stack.pop()
            if id(value) not in self._seen and not _is_left_alone(value):
                self._seen[id(value)] = value  # keeps it alive, so that no other object gets its identity
                kind: Any = type(value)
                in_data = in_data or _holds_data(kind)
                stack += [(path + label, child, in_data) for label, child in self._save(path, value, in_data)]

    def _save(self, path: str, value: Any, in_data: bool) -> Children:
        """Save the state of one object, and yield the objects reached from it with their labels in a path."""
        kind: Any = type(value)
        if issubclass(kind, io.IOBase):
            if not self._restore_later(path, value, [save_file]):
                self._watch(path, partial(position, value), one_way=True)
        elif _is_one_way(kind):
            self._watch(path, partial(position, value), one_way=True)
            if isinstance(value, types.GeneratorType) and value.gi_frame is not None:
                variables = _named(value.gi_frame.f_locals)
                yield from (each for each in variables if not issubclass(type(each[1]), ONE_WAY))
        elif in_data and _num_elements(value) > _MAX_DATA_ELEMENTS:
            if isinstance(value, Tensor) and not value.is_inference():
                self._watch(path, lambda: value._version)
        else:
            self._restore_later(path, value, savers_of(kind))
            yield from _members(value, kind, _MAX_DATA_MEMBERS if in_data else math.inf)
            for way in _ways_from(kind):
                try:
                    children = way(value)
                except Exception:
                    continue
                yield from children

    def _restore_later(self, path: str, value: Any, savers: Iterable[Saver]) -> bool:
        before = len(self._restorers)
        for save in savers:
            try:
                restore = save(value)
            except Exception:  # Skip attributes that cannot be read.
                continue
            if restore is not None:
                self._restorers.append((path, restore))
        return len(self._restorers) > before

    def _watch(self, path: str, probe: Callable[[], Any], one_way: bool = False) -> None:
        self._watched.append((path, probe, probe()))
        if one_way:
            self.one_way.append(path)


@cache
def is_installed(kind: type) -> bool:
    """Return whether a class belongs to Python or to an installed package, not to the user's own code."""
    name = kind.__module__ if isinstance(kind.__module__, str) else ""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file


def _is_left_alone(value: Any) -> bool:
    kind: Any = type(value)
    if kind is tuple:
        return set(map(type, value)) <= _CONSTANT
    return is_installed(value) if issubclass(kind, type) else _is_service(kind)


@cache
def _is_one_way(kind: type) -> bool:
    """Return whether objects of a class can only advance. A CombinedLoader has ``__next__``, but can start again."""
    return issubclass(kind, ONE_WAY) and is_installed(kind) and not issubclass(kind, CombinedLoader)


@cache
def _is_service(kind: type) -> bool:
    if kind in _CONSTANT or issubclass(kind, np.generic):
        return True
    module = str(kind.__module__)
    named = module.partition(".")[0] in _SERVICE_PACKAGES or f"{module}.".startswith(_SERVICE_MODULES)
    values = module == "multiprocessing.sharedctypes"
    return issubclass(kind, _SERVICES) or (named and not values and not issubclass(kind, _NO_SERVICES))


@cache
def _holds_data(kind: type) -> bool:
    return issubclass(kind, _DATA) or str(kind.__module__).partition(".")[0] in _DATA_PACKAGES


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pause automatic garbage collection, which would take most of the time while many objects are created."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _num_elements(value: Any) -> int:
    with suppress(Exception):
        if issubclass(type(value), (Tensor, np.ndarray)):
            return int(np.prod(value.shape))
    return 0


@cache
def _ways_from(kind: type) -> tuple[Callable[[Any], Children], ...]:
    """Return functions that list the objects reached from an object of a class, with their labels in a path."""
    ways = [way for base, way in _WAYS.items() if issubclass(kind, base)]
    if kind.__dictoffset__ and not issubclass(kind, type):
        ways.append(_loader_attributes if issubclass(kind, DataLoader) else _attributes)
    if has_slots(kind):
        ways.append(lambda value: ((f".{slot.__name__}", member) for slot, member in slots_of(value)))
    classes = [(f".{base.__name__}", base) for base in kind.__mro__ if not is_installed(base)]
    if classes and not issubclass(kind, type):
        ways.append(lambda value: classes)
    return tuple(ways)


def _members(value: Any, kind: type, at_most: float) -> Children:
    """List the members of a collection (and the keys of a dict) that are not constants."""
    collection = _collection(kind)
    members = list(collection(value)) if collection else []
    if len(members) > at_most or set(map(type, members)) <= _CONSTANT:
        return []
    labels = list(dict.keys(value)) * 2 if issubclass(kind, dict) else range(len(members))
    return [
        (f"[{label!r}]" if isinstance(label, (str, int)) else "[...]", member)
        for label, member in zip(labels, members, strict=True)
        if not _is_left_alone(member)
    ]


def _named(members: Mapping[str, Any]) -> Children:
    return [(f".{name}", member) for name, member in members.items() if type(member) not in _CONSTANT]


def _attributes(value: Any) -> Children:
    return _named(attributes_of(value) or {})


def _loader_attributes(value: Any) -> Children:
    """List a loader's attributes without the iterator of persistent workers, which restarts with each use."""
    return _named({name: member for name, member in (attributes_of(value) or {}).items() if name != "_iterator"})


def _parts(*names: str) -> Callable[[Any], Children]:
    """Return a function that lists attributes that are not in the ``__dict__``."""
    return lambda value: _named({name: getattr(value, name, None) for name in names})


def _variables(value: types.FunctionType) -> Children:
    return _named(dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)))


def _content(value: types.CellType) -> Children:
    with suppress(ValueError):  # The variable of the enclosing function has no value yet.
        return [("", value.cell_contents)]
    return []


def _tensors(value: Any) -> Children:
    """List the tensors of a scripted module, which are not in its ``__dict__``."""
    return _named(dict(chain(value.named_parameters(recurse=False), value.named_buffers(recurse=False))))


_WAYS: dict[type, Callable[[Any], Children]] = {
    type: lambda value: _named(class_attributes(value)),
    types.MethodType: _parts("__self__", "__func__"),
    types.BuiltinMethodType: _parts("__self__"),
    types.FunctionType: lambda value: chain(_parts("__defaults__", "__kwdefaults__")(value), _variables(value)),
    types.CellType: _content,
    partial: _parts("func", "args", "keywords"),
    staticmethod: _parts("__func__"),
    classmethod: _parts("__func__"),
    property: _parts("fget", "fset", "fdel"),
    weakref.ref: lambda value: [("()", value())],
    np.ndarray: _parts("base"),
    np.random.Generator: _parts("bit_generator"),
    Tensor: lambda value: [(".grad", value.grad)] if value.is_leaf else [],
    torch.jit.ScriptModule: _tensors,
}


@cache
def _collection(kind: type) -> Callable[[Any], Iterable[Any]] | None:
    """Return a function that lists the members of collections of a class; ``None`` if it is not a collection."""
    if issubclass(kind, dict):
        return lambda value: [*dict.values(value), *dict.keys(value)]
    if issubclass(kind, np.ndarray):
        return lambda value: value.ravel().tolist() if value.dtype == object else []
    for base in (list, tuple, deque, set, frozenset):
        if issubclass(kind, base):
            return base.__iter__
    return None
