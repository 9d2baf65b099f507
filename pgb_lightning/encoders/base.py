"""A transformers encoder inside a model, with the description of its family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning._compat import CHECKPOINT_WRAPPED, COMPILED
from pgb_lightning.encoders.family import SUBLAYERS, Family, Sublayer
from pgb_lightning.encoders.fused import Columns, is_plain, join_parts, part_columns, part_of
from pgb_lightning.encoders.sizes import Sizes
from pgb_lightning.encoders.wrappers import join_path, names_of, replace_module, state_dict_path, unwrap
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.fused import FusedLinear

#: Prefix of the model types of exported models; the rest is the family's
#: (:mod:`pgb_lightning.export.registered_models`).
EXPORTED = "pgb-lightning-"


@dataclass(frozen=True)
class Encoder(Sizes):
    """A transformers encoder with the description of its family.

    Args:
        name: The encoder's attribute path in the module in which it was found; empty if it is that module.
        model: The transformers model that owns the layers.
        family: How its layers are built.
        root: The module in which the encoder was found; ``model`` if omitted. Layers are replaced under all names that
            they have in it.
    """

    name: str
    model: PreTrainedModel
    family: Family
    root: nn.Module | None = None

    @property
    def model_type(self) -> str:
        """The transformers ``model_type``, such as ``"bert"``; for an exported model, that of the original model."""
        return model_type_of(self.model)

    @property
    def where(self) -> str:
        """The encoder's path, for messages."""
        return repr(self.name) if self.name else "the root"

    def run(
        self, layer: nn.Module, sublayer: Sublayer, hidden: Tensor, arguments: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Run one sublayer of a layer, residual and LayerNorm included.

        Args:
            layer: One of :attr:`layers`, or a copy.
            sublayer: The sublayer.
            hidden: Hidden states, (B, S, d).
            arguments: The arguments with which the model calls the layer, as far as the family needs them.

        Returns:
            Hidden states, (B, S, d).
        """
        if sublayer == "attention":
            return self.family.attend(self.model, layer, hidden, arguments or {})
        return self.family.feed(layer, hidden)

    def arguments_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call of a layer by name, the hidden states first."""
        parameters = signature(self.layers[0].forward).parameters
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        return {name: given[name] for name in parameters if name in given} | given

    def pass_on(self, step: int, first: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the input of the next layer, given the output of a layer.

        Args:
            step: Index of the run of a layer that was just made.
            first: The first layer's input, (B, S, d).
            hidden: The layer's output, (B, S, d).
            tokens: True at real tokens, False at padding, (B, S).
        """
        between = self.family.between
        return hidden if between is None else between(self.model, step, first, hidden, tokens)

    def read(self, layer: nn.Module, sublayer: Sublayer, hidden: Tensor) -> Tensor:
        """Return the input of a sublayer's opening matrices, (..., d): hidden states after its pre-norm, if any.

        Args:
            layer: A layer in which the sublayer is not dropped.
            sublayer: The sublayer.
            hidden: Hidden states, (..., d).
        """
        norm = self.family.norms.get(sublayer)
        return hidden if norm is None else layer.get_submodule(norm)(hidden)

    @property
    def roots(self) -> list[nn.Module]:
        """The modules in which layers are replaced: :attr:`root` and, if that is another module's copy, the model."""
        return [self.model] if self.root is None else [self.root, self.model]

    @property
    def stack(self) -> nn.ModuleList:
        """The list that holds the layers, which may be wrapped."""
        stack = self.model.get_submodule(self.family.layers)
        assert isinstance(stack, nn.ModuleList)
        return stack

    @property
    def owners(self) -> list[PreTrainedModel]:
        """The models that run the layers: more than one if several models share them."""
        root = self.model if self.root is None else self.root
        models = [m for m in root.modules() if isinstance(m, PreTrainedModel) and has_layers(m, self.family)]
        own = [m for m in models if list(Encoder("", m, self.family).stack) == list(self.stack)]
        return own if self.model in own else [self.model, *own]

    @property
    def names(self) -> list[str]:
        """All paths of the encoder in the module in which it was found, :attr:`name` first."""
        root = self.model if self.root is None else self.root
        found = [name for owner in self.owners for name in names_of(owner, root)]
        return list(dict.fromkeys([self.name, *found]))

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder layers, first to last, without the wrappers that they may have."""
        return [layer for _, layer in self._unwrapped()]

    def _unwrapped(self) -> list[tuple[str, nn.Module]]:
        """Return the path of each layer in :attr:`stack`, and the layer."""
        parts = {path.partition(".")[0] for path in self.family.paths.values()}
        found = [unwrap(child, parts) for child in self.stack]
        return [(join_path(str(number), path), layer) for number, (path, layer) in enumerate(found)]

    def matrix(self, layer: int, kind: str) -> nn.Module:
        """Return the module that holds a matrix.

        For a part of a dense fused linear layer, this is a new linear layer with that part of the weights: a view of
        them, unless parts are interleaved. If another library has replaced a fused linear layer, this is the module
        that holds all parts.

        Args:
            layer: Layer index, from 0.
            kind: One of :attr:`matrices`.

        Raises:
            AttributeError: If the matrix was removed with its sublayer.
        """
        return self.matrix_in(self.layers[layer], kind)

    def matrix_in(self, block: nn.Module, kind: str) -> nn.Module:
        """Return the layer that holds a matrix, as :meth:`matrix` does, in one of :attr:`layers` or a copy."""
        path, parts = self.family.paths[kind], self.family.parts(kind)
        found = block.get_submodule(path)
        if isinstance(found, DroppedCore):
            raise AttributeError(f"{kind} was removed with its sublayer.")
        if len(parts) > 1 and isinstance(found, FusedLinear):
            return found.get_submodule(kind)
        return part_of(found, self._columns(found, kind)) if len(parts) > 1 and is_plain(found) else found

    def _columns(self, fused: nn.Linear, kind: str) -> Columns:
        """Return the outputs of a dense fused linear layer that belong to a part."""
        parts = self.family.parts(kind)
        return part_columns(fused.out_features, parts.index(kind), len(parts), self._part_block, fused.weight.device)

    @property
    def _part_block(self) -> int | None:
        """Consecutive outputs of a part of a fused linear layer, if its parts are interleaved."""
        return self.head_size if self.family.interleaved else None

    def find_matrix(self, layer: int, kind: str) -> nn.Module | None:
        """Return the layer that holds a matrix, or ``None`` if it was removed with its sublayer."""
        try:
            return self.matrix(layer, kind)
        except AttributeError:
            return None

    def is_dropped(self, layer: int, sublayer: Sublayer) -> bool:
        """Return whether a sublayer was dropped, so that it only adds a constant."""
        return self.find_matrix(layer, SUBLAYERS[sublayer][0]) is None

    def set_matrix(self, layer: int, kind: str, module: nn.Module) -> None:
        """Replace the layer that holds a matrix, under every name that it has."""
        self.set_matrices(layer, {kind: module})

    def set_matrices(self, layer: int, modules: Mapping[str, nn.Module]) -> None:
        """Replace the layers that hold matrices, under every name that they have.

        The parts of a fused linear layer remain one linear layer as long as all of them are dense.

        Args:
            layer: Layer index.
            modules: The new layers, by matrix kind.
        """
        for path, kinds in self.family.linears.items():
            if modules.keys().isdisjoint(kinds):
                continue
            old = self.layers[layer].get_submodule(path)
            if len(kinds) == 1:
                new = modules[kinds[0]]
            else:
                parts = {kind: modules[kind] if kind in modules else self.matrix(layer, kind) for kind in kinds}
                new = join_parts(old, parts, self._part_block)
            replace_module(old, new, self.roots)

    def store(self, layer: int, kind: str, part: nn.Module) -> None:
        """Copy the weights of a part that :meth:`matrix` returned back to its fused linear layer, if there is one."""
        fused = self.layers[layer].get_submodule(self.family.paths[kind])
        if len(self.family.parts(kind)) > 1 and is_plain(fused) and isinstance(part, nn.Linear):
            columns = self._columns(fused, kind)
            fused.weight.data[columns] = part.weight.data
            if fused.bias is not None:
                fused.bias.data[columns] = part.bias.data

    def hook_points(self) -> Iterator[tuple[nn.Linear, dict[tuple[int, str], Columns | None]]]:
        """Yield every linear layer, with the outputs that belong to each matrix that it holds.

        The outputs are ``None`` if the layer holds only one matrix.
        """
        for number, layer in enumerate(self.layers):
            for path, kinds in self.family.linears.items():
                if self.find_matrix(number, kinds[0]) is None:
                    continue
                found = layer.get_submodule(path)
                if isinstance(found, nn.Linear):
                    fused = len(kinds) > 1
                    yield found, {(number, kind): self._columns(found, kind) if fused else None for kind in kinds}
                else:
                    for kind in kinds:
                        part = self.find_matrix(number, kind)
                        if isinstance(part, nn.Linear):
                            yield part, {(number, kind): None}

    def path(self, layer: int, kind: str) -> str:
        """Return the name of a matrix's layer in the state dict of the module in which the encoder was found.

        If the matrix is a part of a fused linear layer, this is the name of the fused layer.
        """
        return state_dict_path(self.name, self.family.layers, self._unwrapped()[layer][0], self.family.paths[kind])

    def check_wrappers(self) -> None:
        """Check that no wrapper of a layer can change its outputs, since a copy of the model has no wrappers.

        Raises:
            ValueError: If a layer is wrapped by anything but ``torch.compile`` and activation checkpointing.
        """
        for wrapper, (path, _) in zip(self.stack, self._unwrapped(), strict=True):
            _, *names = path.split(".")
            if set(names) - {COMPILED, CHECKPOINT_WRAPPED}:
                raise ValueError(
                    f"The layers of the encoder at {self.where} are wrapped by {type(wrapper).__name__}, which may "
                    "change their outputs. Replace the wrappers in the model by the layers first."
                )

    def plain_names(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of the module in which the encoder was found, without wrappers in the layers' names."""
        state = dict(state_dict)
        for name in self.names:
            for number, (path, _) in enumerate(self._unwrapped()):
                wrapped = state_dict_path(name, self.family.layers, path) + "."
                plain = state_dict_path(name, self.family.layers, str(number)) + "."
                for key in [key for key in state if key.startswith(wrapped)]:
                    state[plain + key.removeprefix(wrapped)] = state.pop(key)
        return state

    def linears(self) -> Iterator[tuple[tuple[int, str], nn.Linear]]:
        """Yield ``(layer index, matrix kind), linear`` for every matrix that is still an ``nn.Linear``."""
        for number in range(self.num_layers):
            for kind in self.matrices:
                module = self.find_matrix(number, kind)
                if isinstance(module, nn.Linear):
                    yield (number, kind), module


def model_type_of(model: PreTrainedModel) -> str:
    """Return the ``model_type`` under which a model's family is registered."""
    return str(model.config.model_type).removeprefix(EXPORTED)


def has_layers(model: PreTrainedModel, family: Family) -> bool:
    """Return whether a model owns a family's list of layers, in contrast to a model with a head that wraps it."""
    try:
        return isinstance(model.get_submodule(family.layers), nn.ModuleList)
    except AttributeError:
        return False
