"""The sizes of an encoder from its configuration, which are those of the dense model even if the encoder is pruned."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from pgb_lightning.encoders.family import KEY_VALUE, SUBLAYERS, Family, Sublayer, sublayer_of


class Sizes:
    """Mixin for :class:`~pgb_lightning.encoders.base.Encoder` with its sizes.

    Attributes:
        model: The transformers model that owns the layers.
        family: How its layers are built.
    """

    model: PreTrainedModel
    family: Family

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.model.get_submodule(self.family.layers))  # type: ignore[arg-type]

    @property
    def hidden_size(self) -> int:
        """The width d of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrix kinds that each layer has in the dense encoder, in order."""
        return self.family.matrices

    @property
    def sublayers(self) -> dict[Sublayer, tuple[str, ...]]:
        """The matrix kinds of each sublayer."""
        return self.family.sublayers

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        given = getattr(self.model.config, "head_dim", None)
        return int(given or self.hidden_size // int(self.model.config.num_attention_heads))

    @property
    def num_heads(self) -> int:
        """Number of query heads of a dense layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def queries_per_key(self) -> int:
        """Number of query heads that share a head of keys and values."""
        return self.num_heads // int(getattr(self.model.config, "num_key_value_heads", None) or self.num_heads)

    @property
    def attention_unit(self) -> int:
        """Number of attention features that are removed together.

        These are the features of a head, or of all query heads that share keys and values, or of all heads if the model
        needs all of them.
        """
        return self.inner_size("attention") if self.family.needs_all_heads else self.head_group

    @property
    def head_group(self) -> int:
        """Number of features of the query heads that share a head of keys and values; of one head if none do."""
        return self.head_size * self.queries_per_key

    def unit(self, sublayer: Sublayer) -> int:
        """Return how many inner features of a sublayer are removed together: those of a head, or one neuron."""
        return self.attention_unit if sublayer == "attention" else 1

    def inner_size(self, sublayer: Sublayer) -> int:
        """Return the number of inner features of a dense sublayer: the features of all heads, or the neurons."""
        if sublayer == "attention":
            return self.num_heads * self.head_size
        return int(getattr(self.model.config, self.family.num_neurons))

    def is_inner_size(self, sublayer: Sublayer, size: int) -> bool:
        """Return whether a sublayer can have ``size`` inner features."""
        return 0 < size <= self.inner_size(sublayer) and size % self.unit(sublayer) == 0

    def matrix_size(self, kind: str, inner_size: int) -> tuple[int, int]:
        """Return M and N of a matrix, given the number of inner features of its sublayer."""
        if kind == SUBLAYERS[sublayer_of(kind)][-1]:
            return inner_size, self.hidden_size
        return self.hidden_size, inner_size // self.queries_per_key if kind in KEY_VALUE else inner_size

    def attention_type(self, layer: int) -> str:
        """Return the type of a layer's attention, such as ``"sliding_attention"``; empty if all have the same."""
        types = getattr(self.model.config, "layer_types", None) or []
        return str(types[layer]) if len(set(types)) > 1 else ""

    @property
    def order(self) -> Sequence[int]:
        """The index of the layer that runs at each step; some models run a layer several times."""
        return range(self.num_layers) if self.family.order is None else self.family.order(self.model.config)

    def num_runs(self, layer: int) -> int:
        """Return how many times a layer runs."""
        return list(self.order).count(layer)

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in a sequence, not counting position embeddings up to the padding index.

        Dynamically scaled rotary positions, as in nomic-embed, extend ``max_position_embeddings`` by their factor.
        """
        try:
            positions = self.model.get_submodule("embeddings.position_embeddings")
        except AttributeError:  # relative or rotary positions
            positions = None
        padding = getattr(positions, "padding_idx", None)
        rotary = getattr(self.model.config, "rope_parameters", None) or {}
        factor = rotary.get("factor", 1) if rotary.get("rope_type") == "dynamic" else 1
        return int(factor * self.model.config.max_position_embeddings) - (0 if padding is None else int(padding) + 1)
