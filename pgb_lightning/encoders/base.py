"""How an encoder is described: a :class:`Family` for each kind, an :class:`Encoder` for each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from pgb_lightning._compat import CHECKPOINT_WRAPPED, COMPILED
from pgb_lightning.encoders.wrappers import join_path, names_of, replace_module, state_dict_path, unwrap

Sublayer = Literal["attention", "ffn"]

#: The six matrix kinds in the order in which a layer computes them, with the paper's names.
MATRICES = ("Q", "K", "V", "O", "W1", "W2")

#: The matrices of each sublayer. The last one closes it: its output is added to the residual stream.
SUBLAYERS: dict[Sublayer, tuple[str, ...]] = {"attention": ("Q", "K", "V", "O"), "ffn": ("W1", "W2")}


def sublayer_of(kind: str) -> Sublayer:
    """Return the sublayer that a matrix kind belongs to.

    Example:
        >>> sublayer_of("W1")
        'ffn'
    """
    return next(sublayer for sublayer, kinds in SUBLAYERS.items() if kind in kinds)


#: The matrices that can be removed on their own: attention then still mixes tokens, but less selectively. Without any
#: other matrix, a sublayer adds the same vector to every token and is dropped.
EXPENDABLE = ("Q", "K")


@dataclass(frozen=True)
class Family:
    """How the encoders of one family are built.

    Args:
        layers: Path from the encoder to its list of layers.
        paths: For each matrix kind, the path of its linear layer inside a layer.
        cores: For each sublayer, the path of the module that is replaced when the sublayer is dropped.
        attend: Runs the attention sublayer of a layer, residual and LayerNorm included:
            (model, layer, hidden states (B, S, d), attention mask) -> (B, S, d). The model provides what its layers
            share.
        feed: Runs the feed-forward sublayer, likewise: (layer, hidden states (B, S, d)) -> (B, S, d).
        tokenwise: Path of a module in a layer, and the name of its method that runs the feed-forward sublayer (or the
            part of it inside the module) independently for each token; ``None`` if there is no such method.
        num_neurons: Name of the configuration's setting for the neurons of a feed-forward network.
        needs_all_heads: Whether attention is computed for all heads, including those without weights.
        attention_table: Path from the encoder to an embedding table that only attention reads, if there is one.
    """

    layers: str
    paths: dict[str, str]
    cores: dict[Sublayer, str]
    attend: Callable[[PreTrainedModel, nn.Module, Tensor, Tensor | None], Tensor]
    feed: Callable[[nn.Module, Tensor], Tensor]
    tokenwise: tuple[str, str] | None
    num_neurons: str
    needs_all_heads: bool = False
    attention_table: str | None = None


#: Prefix of the model types of exported models; the rest is the family's
#: (:mod:`pgb_lightning.export.registered_models`).
EXPORTED = "pgb-lightning-"


@dataclass(frozen=True)
class Encoder:
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
        """The transformers ``model_type``, such as ``"bert"``; that of the original model for an exported one."""
        return model_type_of(self.model)

    @property
    def where(self) -> str:
        """The encoder's path, for messages."""
        return repr(self.name) if self.name else "the root"

    @property
    def hidden_size(self) -> int:
        """The width d of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return self.hidden_size // int(self.model.config.num_attention_heads)

    @property
    def attention_unit(self) -> int:
        """Features of attention that are removed together: those of a head, or all if the model needs all heads."""
        return self.inner_size("attention") if self.family.needs_all_heads else self.head_size

    def unit(self, sublayer: Sublayer) -> int:
        """Return how many inner features of a sublayer are removed together: those of a head, or a single neuron."""
        return self.attention_unit if sublayer == "attention" else 1

    def inner_size(self, sublayer: Sublayer) -> int:
        """Return the number of inner features of a dense sublayer: the features of all heads, or the neurons."""
        return self.hidden_size if sublayer == "attention" else int(getattr(self.model.config, self.family.num_neurons))

    def matrix_size(self, kind: str, inner_size: int) -> tuple[int, int]:
        """Return M and N of a matrix, given the number of inner features of its sublayer."""
        closes = kind == SUBLAYERS[sublayer_of(kind)][-1]
        return (inner_size, self.hidden_size) if closes else (self.hidden_size, inner_size)

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in a sequence; position embeddings up to the padding's index are not used."""
        padding = self.model.get_submodule("embeddings.position_embeddings").padding_idx
        return int(self.model.config.max_position_embeddings) - (0 if padding is None else int(padding) + 1)  # type: ignore[arg-type]

    def run(self, layer: nn.Module, sublayer: Sublayer, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run one sublayer of a layer, residual and LayerNorm included.

        Args:
            layer: One of :attr:`layers`, or a copy.
            sublayer: The sublayer.
            hidden: Hidden states, (B, S, d).
            mask: The attention mask in the form that the layers take.

        Returns:
            Hidden states, (B, S, d).
        """
        if sublayer == "attention":
            return self.family.attend(self.model, layer, hidden, mask)
        return self.family.feed(layer, hidden)

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
        """Return the layer that holds a matrix.

        Args:
            layer: Layer index, from 0.
            kind: One of :data:`MATRICES`.

        Raises:
            AttributeError: If it was removed with its sublayer.
        """
        return self.layers[layer].get_submodule(self.family.paths[kind])

    def find_matrix(self, layer: int, kind: str) -> nn.Module | None:
        """Return the layer that holds a matrix, or ``None`` if it was removed with its sublayer."""
        try:
            return self.matrix(layer, kind)
        except AttributeError:
            return None

    def is_dropped(self, layer: int, sublayer: Sublayer) -> bool:
        """Return whether nothing is left of a sublayer but the constant that it adds."""
        return self.find_matrix(layer, SUBLAYERS[sublayer][0]) is None

    def set_matrix(self, layer: int, kind: str, module: nn.Module) -> None:
        """Replace the layer that holds a matrix, under every name that it has."""
        replace_module(self.matrix(layer, kind), module, self.roots)

    def path(self, layer: int, kind: str) -> str:
        """Return the name of a matrix's layer in the state dict of the module in which the encoder was found."""
        return state_dict_path(self.name, self.family.layers, self._unwrapped()[layer][0], self.family.paths[kind])

    def check_wrappers(self) -> None:
        """Require that no wrapper of a layer can change what it computes, as a copy of the model has no wrappers.

        Raises:
            ValueError: If a layer is wrapped by anything but ``torch.compile`` and activation checkpointing.
        """
        for wrapper, (path, _) in zip(self.stack, self._unwrapped(), strict=True):
            _, *names = path.split(".")
            if set(names) - {COMPILED, CHECKPOINT_WRAPPED}:
                raise ValueError(
                    f"The layers of the encoder at {self.where} are wrapped by {type(wrapper).__name__}, which may "
                    "change what they compute. Put the layers themselves into the model first."
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
        for number in range(len(self.layers)):
            for kind in MATRICES:
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
