"""Where Q, K, V, O, W1, W2 and the sublayers live, by transformers ``model_type``.

This is the only file that knows how an encoder is built; the method sees layers, matrices and sublayers.
To support another encoder, add one :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

Sublayer = Literal["attention", "ffn"]

#: The six matrix kinds in the order in which a layer computes them, with the paper's names.
MATRICES = ("Q", "K", "V", "O", "W1", "W2")

#: The matrices of each sublayer; the last one closes it (its output is added to the residual stream).
SUBLAYERS: dict[Sublayer, tuple[str, ...]] = {"attention": ("Q", "K", "V", "O"), "ffn": ("W1", "W2")}

#: The matrices that may be pruned whole alone: attention then still mixes tokens, only less selectively. Without any
#: other matrix a sublayer adds the same to every token, and is dropped.
EXPENDABLE = ("Q", "K")


@dataclass(frozen=True)
class Family:
    """The map of one family of encoders.

    Args:
        layers: Path from the encoder to its list of layers.
        paths: For each matrix kind, the path of its linear layer inside a layer.
        cores: For each sublayer, the path of the module that is replaced when the sublayer is dropped.
        attend: Runs the attention sublayer of a layer, residual and LayerNorm included:
            (model, layer, hidden states (B, S, d), attention mask) -> (B, S, d). The model is there for what its
            layers share.
        feed: The same for the feed-forward sublayer: (layer, hidden states (B, S, d)) -> (B, S, d).
        tokenwise: Path of a module in a layer, and its method that runs the feed-forward sublayer (or the part of
            it that is in the module) token by token; ``None`` if there is no such method.
        num_neurons: The configuration's name for the neurons of a feed-forward network.
        needs_all_heads: Whether attention is computed for all heads, also for those of which no weight is left.
    """

    layers: str
    paths: dict[str, str]
    cores: dict[Sublayer, str]
    attend: Callable[[PreTrainedModel, nn.Module, Tensor, Tensor | None], Tensor]
    feed: Callable[[nn.Module, Tensor], Tensor]
    tokenwise: tuple[str, str] | None
    num_neurons: str
    needs_all_heads: bool = False


#: What the model types of exported models begin with; the rest names the family (:mod:`pgb_lightning.export.models`).
EXPORTED = "pgb-lightning-"


@dataclass(frozen=True)
class Encoder:
    """A transformers encoder seen through its map.

    Args:
        name: The encoder's attribute path in the module it was found in; empty if it is that module.
        model: The transformers model that owns the layers.
        architecture: The map of its ``model_type``.
    """

    name: str
    model: PreTrainedModel
    family: Family

    @property
    def model_type(self) -> str:
        """The transformers ``model_type``, such as ``"bert"``, also of an exported model."""
        return family_name(self.model)

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return int(self.model.config.hidden_size // self.model.config.num_attention_heads)

    @property
    def attention_unit(self) -> int:
        """Features inside attention that are left out together: a head's, or all where the model needs all heads."""
        return self.inner_size("attention") if self.family.needs_all_heads else self.head_size

    def inner_size(self, sublayer: Sublayer) -> int:
        """Return how many features lie between the ends of a dense sublayer: those of all heads, or the neurons."""
        config = self.model.config
        return int(config.hidden_size if sublayer == "attention" else getattr(config, self.family.num_neurons))

    @property
    def max_length(self) -> int:
        """Tokens that the encoder takes at most; where positions begin behind the padding's, they are fewer."""
        padding = self.model.get_submodule("embeddings.position_embeddings").padding_idx
        return int(self.model.config.max_position_embeddings) - (0 if padding is None else int(padding) + 1)  # type: ignore[arg-type]

    def run(self, layer: nn.Module, sublayer: Sublayer, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run one sublayer of a layer, residual and LayerNorm included.

        Args:
            layer: One of :attr:`layers`, or one that is built alike.
            sublayer: Which of its sublayers.
            hidden: Hidden states, (B, S, d).
            mask: The attention mask in the form that the layers take.

        Returns:
            Hidden states, (B, S, d).
        """
        if sublayer == "attention":
            return self.family.attend(self.model, layer, hidden, mask)
        return self.family.feed(layer, hidden)

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder layers, first to last."""
        return list(self.model.get_submodule(self.family.layers).children())

    def matrix(self, layer: int, kind: str) -> nn.Module:
        """Return the module at matrix ``kind`` of layer number ``layer``.

        Raises:
            AttributeError: The matrix is gone because its sublayer was dropped.
        """
        return self.layers[layer].get_submodule(self.family.paths[kind])

    def find_matrix(self, layer: int, kind: str) -> nn.Module | None:
        """Return the module at a matrix, or ``None`` if it is gone with its sublayer."""
        try:
            return self.matrix(layer, kind)
        except AttributeError:
            return None

    def path(self, layer: int, kind: str) -> str:
        """Return a matrix's attribute path from the module in which the encoder was found."""
        return join_path(self.name, self.family.layers, str(layer), self.family.paths[kind])

    def linears(self) -> Iterator[tuple[tuple[int, str], nn.Linear]]:
        """Yield ``(layer number, matrix kind), linear`` for every matrix that is still dense."""
        for number in range(len(self.layers)):
            for kind in MATRICES:
                module = self.find_matrix(number, kind)
                if isinstance(module, nn.Linear):
                    yield (number, kind), module


def family_name(model: PreTrainedModel) -> str:
    """Return the ``model_type`` under which an encoder's map is known."""
    return str(model.config.model_type).removeprefix(EXPORTED)


def join_path(*parts: str | None) -> str:
    """Join attribute paths, leaving out empty ones."""
    return ".".join(part for part in parts if part)
