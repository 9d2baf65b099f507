"""Save the state of a single object, and restore it in the same object.

Every saver returns a function that restores the object. It writes only what differs, and uses the methods of the
built-in base class, since subclasses may override them.
"""

from __future__ import annotations

import array
import ctypes
import io
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import is_
from types import CellType, MemberDescriptorType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgb_lightning._compat import save_tensor_hooks
from pgb_lightning.callbacks.pruning.saved_tensor import save_tensor

Restore = Callable[[], object]
Saver = Callable[[Any], Restore | None]

#: The value of an empty slot or cell.
MISSING = object()


@cache
def savers_of(kind: type) -> tuple[Saver, ...]:
    """Return the functions that save the state of objects of a class; each returns ``None`` if it has nothing to save.

    For example, an instance of a subclass of list can have members, attributes in its ``__dict__``, and slots.

    Args:
        kind: The class.
    """
    savers = [save for base, save in _SAVERS.items() if issubclass(kind, base)]
    if kind.__dictoffset__ and not issubclass(kind, type):
        savers.append(_save_class_and_attributes)
    if has_slots(kind):
        savers.append(_save_slots)
    if issubclass(kind, Tensor):
        savers.append(save_tensor_hooks)
    return tuple(savers)


def has_slots(kind: type) -> bool:
    """Return whether a class, or one that it derives from, has ``__slots__``."""
    return any(vars(base).get("__slots__") for base in kind.__mro__)


def attributes_of(value: Any) -> dict[str, Any] | None:
    """Return an object's ``__dict__`` (not a copy) without calling any method of its class; ``None`` if it has none."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def slots_of(value: Any) -> Iterator[tuple[MemberDescriptorType, Any]]:
    """Yield the descriptors of an object's slots with their values, ``MISSING`` where a slot is empty."""
    for base in type(value).__mro__:
        if "__slots__" in vars(base):
            for slot in vars(base).values():
                if isinstance(slot, MemberDescriptorType):
                    try:
                        yield slot, slot.__get__(value)
                    except AttributeError:
                        yield slot, MISSING


def class_attributes(cls: type) -> dict[str, Any]:
    """Return the attributes of a class itself (not of its bases) that code may replace."""
    return {name: value for name, value in vars(cls).items() if not (name.startswith("__") and name.endswith("__"))}


def _same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    """Return whether two collections of equal length have the same members, by identity and in the same order."""
    return all(map(is_, left, right))


def _save_class_and_attributes(value: Any) -> Restore:
    """Save an object's class, which parametrizations and lazy modules change, and its ``__dict__``."""
    kind, attributes = type(value), attributes_of(value)
    restore_attributes = None if attributes is None else save_dict(attributes)

    def restore() -> None:
        if type(value) is not kind:
            object.__setattr__(value, "__class__", kind)
        if attributes_of(value) is not attributes:
            object.__setattr__(value, "__dict__", attributes)
        if restore_attributes:
            restore_attributes()

    return restore


def _save_slots(value: Any) -> Restore:
    saved = list(slots_of(value))

    def restore() -> None:
        for (slot, before), (_, now) in zip(saved, list(slots_of(value)), strict=True):
            if now is not before and before is MISSING:
                slot.__delete__(value)
            elif now is not before:
                slot.__set__(value, before)

    return restore


def _save_class(cls: type) -> Restore:
    saved = class_attributes(cls)

    def restore() -> None:
        now = class_attributes(cls)
        for name in now.keys() - saved.keys():
            type.__delattr__(cls, name)
        for name, before in saved.items():
            if now.get(name, MISSING) is not before:
                type.__setattr__(cls, name, before)

    return restore


def _save_cell(cell: CellType) -> Restore:
    def content() -> Any:
        try:
            return cell.cell_contents
        except ValueError:  # The variable of the enclosing function has no value yet.
            return MISSING

    saved = content()

    def restore() -> None:
        if content() is not saved and saved is MISSING:
            del cell.cell_contents
        elif content() is not saved:
            cell.cell_contents = saved

    return restore


def save_dict(value: dict[Any, Any]) -> Restore:
    """Save the keys and members of a dict and their order, but not the state of the members."""
    if isinstance(value, OrderedDict):
        return _save_ordered_dict(value)
    saved = dict.copy(value)

    def restore() -> None:
        if len(value) != len(saved) or not (
            _same(dict.keys(value), saved) and _same(dict.values(value), saved.values())
        ):
            dict.clear(value)
            dict.update(value, saved)

    return restore


def _save_ordered_dict(value: OrderedDict[Any, Any]) -> Restore:
    """Save an ordered dict. It stores its order separately from that of its base class, so it needs its own methods."""

    def items() -> dict[Any, Any]:
        return {key: dict.__getitem__(value, key) for key in OrderedDict.__iter__(value)}

    saved = items()

    def restore() -> None:
        now = items()
        if len(now) != len(saved) or not (_same(now, saved) and _same(now.values(), saved.values())):
            OrderedDict.clear(value)
            for key, member in saved.items():
                OrderedDict.__setitem__(value, key, member)

    return restore


def _save_list(value: list[Any]) -> Restore:
    saved = list.copy(value)

    def restore() -> None:
        if list.__len__(value) != len(saved) or not _same(list.__iter__(value), saved):
            list.__setitem__(value, slice(None), saved)

    return restore


def _save_deque(value: deque[Any]) -> Restore:
    saved = list(deque.__iter__(value))

    def restore() -> None:
        if deque.__len__(value) != len(saved) or not _same(deque.__iter__(value), saved):
            deque.clear(value)
            deque.extend(value, saved)

    return restore


def _save_set(value: set[Any]) -> Restore:
    saved = list(set.__iter__(value))

    def restore() -> None:
        if set(map(id, set.__iter__(value))) != set(map(id, saved)):
            set.clear(value)
            set.update(value, saved)

    return restore


def _save_buffer(value: Any) -> Restore:
    """Save a bytearray or an ``array.array``."""
    saved = value[:]

    def restore() -> None:
        if value != saved:
            value[:] = saved

    return restore


def _save_c_numbers(value: Any) -> Restore | None:
    """Save a ctypes number or array of numbers, such as the counter in a ``multiprocessing.Value``."""
    if memoryview(value).format.lstrip("<>") not in tuple("bBhHiIlLqQfdg?"):  # the codes of numbers
        return None
    saved = bytes(value)
    return lambda: ctypes.memmove(ctypes.addressof(value), saved, len(saved))


def _save_array(value: np.ndarray[Any, Any]) -> Restore | None:
    if not value.flags.writeable or isinstance(value, np.memmap):
        return None
    saved = value.copy()

    def restore() -> None:
        if value.shape != saved.shape:
            value.resize(saved.shape, refcheck=False)
        np.copyto(value, saved)

    return restore


def save_file(value: io.IOBase) -> Restore | None:
    """Save the position of a file that is only read."""
    try:
        saved = value.tell() if value.seekable() and not value.writable() else None
    except (OSError, ValueError):  # closed, or a text file that is being iterated over
        return None
    return None if saved is None else lambda: value.seek(saved)


def _save_torch_generator(value: torch.Generator) -> Restore:
    saved = value.get_state()
    return lambda: value.set_state(saved)


def _save_random(value: random.Random) -> Restore | None:
    if isinstance(value, random.SystemRandom):
        return None
    saved = value.getstate()
    return lambda: value.setstate(saved)


def _save_random_state(value: np.random.RandomState) -> Restore:
    saved = value.get_state()
    return lambda: value.set_state(saved)


def _save_bit_generator(value: np.random.BitGenerator) -> Restore:
    saved = value.state
    return lambda: setattr(value, "state", saved)


_SAVERS: dict[type, Saver] = {
    dict: save_dict,
    list: _save_list,
    set: _save_set,
    deque: _save_deque,
    bytearray: _save_buffer,
    array.array: _save_buffer,
    ctypes.c_int.__mro__[-2]: _save_c_numbers,  # the base class of all ctypes objects, which has no public name
    CellType: _save_cell,
    type: _save_class,
    random.Random: _save_random,
    torch.Generator: _save_torch_generator,
    Tensor: save_tensor,
    np.ndarray: _save_array,
    np.random.RandomState: _save_random_state,
    np.random.BitGenerator: _save_bit_generator,
}
