"""Description of how the encoders of a family are built: the matrices of their layers, and how sublayers are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

Sublayer = Literal["attention", "ffn"]

#: The matrices of each sublayer in the order in which a layer computes them. Q, K, V, O, W1 and W2 are the paper's
#: names; W3 is the second opening matrix of a gated feed-forward network, (act(x W1) * (x W3)) W2. The last matrix
#: closes the sublayer: its output is added to the residual stream.
SUBLAYERS: dict[Sublayer, tuple[str, ...]] = {"attention": ("Q", "K", "V", "O"), "ffn": ("W1", "W3", "W2")}

#: All matrix kinds in order.
MATRICES = tuple(kind for kinds in SUBLAYERS.values() for kind in kinds)

#: The matrices that only some families have.
GATES = ("W3",)

#: The matrices that can be removed on their own: attention then still mixes tokens, but less selectively. Without any
#: other matrix, a sublayer adds the same vector to every token and is dropped.
EXPENDABLE = ("Q", "K")

#: The matrices with one head for each group of query heads, if keys and values are grouped.
KEY_VALUE = ("K", "V")


def sublayer_of(kind: str) -> Sublayer:
    """Return the sublayer that a matrix kind belongs to.

    Example:
        >>> sublayer_of("W1")
        'ffn'
    """
    return next(sublayer for sublayer, kinds in SUBLAYERS.items() if kind in kinds)


def input_of(kind: str) -> str:
    """Return the first matrix with the same input: Q for K and V, W1 for W3.

    Example:
        >>> input_of("V"), input_of("O")
        ('Q', 'O')
    """
    kinds = SUBLAYERS[sublayer_of(kind)]
    return kind if kind == kinds[-1] else kinds[0]


def sublayers_of(kinds: Iterable[str]) -> dict[Sublayer, tuple[str, ...]]:
    """Return the matrices of each sublayer, of those that an encoder has.

    Example:
        >>> sublayers_of(["W1", "W2", "O"])
        {'attention': ('O',), 'ffn': ('W1', 'W2')}
    """
    known = set(kinds)
    return {name: tuple(kind for kind in ordered if kind in known) for name, ordered in SUBLAYERS.items()}


#: Returns the further inputs of a matrix, and how many times each counts (:attr:`Family.also_read`).
AlsoRead = Callable[[PreTrainedModel, Tensor], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class Family:
    """Description of how the encoders of one family are built.

    The first five fields are required. The others describe differences from BERT, and default to BERT's structure.

    Args:
        layers: Path from the encoder to its list of layers.
        paths: For each matrix kind, the path of its linear layer inside a layer. Kinds with the same path are the parts
            of one fused linear layer, in this order and of equal width. The closing matrices are never fused.
        cores: For each sublayer, the path of the module that is replaced when the sublayer is dropped.
        attend: Runs the attention sublayer of a layer, residual and LayerNorm included: (model, layer, hidden states
            (B, S, d), arguments of the layer) -> (B, S, d). The model provides what its layers share.
        feed: Runs the feed-forward sublayer, likewise: (layer, hidden states (B, S, d)) -> (B, S, d).
        interleaved: Whether the parts of a fused linear layer alternate head by head, as in DeBERTa.
        norms: For each sublayer with a LayerNorm before its matrices (pre-norm), the path of that LayerNorm.
        core_norms: For each core that adds the residual itself, the path of the LayerNorm in the core.
        num_neurons: Name of the configuration's setting for the neurons of a feed-forward network.
        bias_settings: For each sublayer whose matrices may have no biases, the name of the configuration's setting that
            enables biases, if there is one. When such a sublayer is dropped, its closing matrix gets a bias with its
            mean output. Without such a setting, a transformers model could not have this bias.
        tokenwise: Path of a module in a layer, and the name of its method that runs the feed-forward sublayer (or the
            part of it inside the module) independently for each token; ``None`` if there is no such method.
        returns_tuple: Whether the core of attention returns a tuple of its output and the attention weights.
        arguments: Names of the arguments of a layer's ``forward`` that ``attend`` needs.
        needs_arguments: Whether a layer cannot be run on hidden states alone.
        shared_arguments: Names of further arguments, which the model computes once for all layers. ``attend`` computes
            them itself if they are not given.
        timed_settings: Names of settings of the configuration on which a layer's latency depends, besides its sizes.
        followers: Paths of parameters and linear layers of attention whose outputs are features of its heads, besides
            the matrices. They lose the features of the heads that are removed.
        head_counts: Paths of attributes with the number of heads, which must be that of the kept heads.
        head_widths: Paths of attributes with the number of features of all heads, likewise.
        select_heads: Returns the core of attention for the kept heads, if heads differ in more than their matrices:
            (model, core, number of kept heads, their positions among the heads of the core) -> a new core with the same
            children, or the same core. The new core has a buffer ``head_index`` with the kept heads' numbers in the
            dense layer. The positions are ``None`` if all heads are kept, or if the numbers are loaded afterwards from
            a state dict.
        needs_all_heads: Whether attention is computed for all heads, including those without weights.
        also_read: For matrices that layers also apply to inputs other than hidden states, such as DeBERTa's embeddings
            of relative positions: (model, mask of real tokens (B, S)) -> the further inputs (R, d), and how many tokens
            each counts for, (R,); ``None`` if the configuration has no such inputs.
        position_modules: Paths from the encoder to modules that only the matrices of ``also_read`` and the followers
            use, such as DeBERTa's relative embeddings. They are frozen if they are no longer used.
        attention_table: Path from the encoder to an embedding table that only attention reads, if there is one.
        order: Returns the index of the layer that runs at each step, for models that run some layers several times in
            a row.
        between: Runs the operations between layers: (model, index of the previous run of a layer, the first layer's
            input (B, S, d), hidden states (B, S, d), mask of real tokens (B, S)) -> (B, S, d).
        runs_first_layers: Whether the model runs only as many of its layers as the configuration's
            ``num_hidden_layers``, which may be changed later.
        unsupported: Returns why an encoder with this configuration cannot be pruned, or ``None`` if it can.
    """

    layers: str
    paths: dict[str, str]
    cores: dict[Sublayer, str]
    attend: Callable[[PreTrainedModel, nn.Module, Tensor, Mapping[str, Any]], Tensor]
    feed: Callable[[nn.Module, Tensor], Tensor]

    # The matrices, and the modules around them.
    interleaved: bool = False
    norms: Mapping[Sublayer, str] = field(default_factory=dict)
    core_norms: Mapping[Sublayer, str] = field(default_factory=dict)
    num_neurons: str = "intermediate_size"
    bias_settings: Mapping[Sublayer, str] = field(default_factory=dict)

    # How a layer is run and measured.
    tokenwise: tuple[str, str] | None = None
    returns_tuple: bool = True
    arguments: tuple[str, ...] = ("attention_mask",)
    needs_arguments: bool = False
    shared_arguments: tuple[str, ...] = ()
    timed_settings: tuple[str, ...] = ()

    # What depends on the heads.
    followers: tuple[str, ...] = ()
    head_counts: tuple[str, ...] = ()
    head_widths: tuple[str, ...] = ()
    select_heads: Callable[[PreTrainedModel, nn.Module, int, Sequence[int] | None], nn.Module] | None = None
    needs_all_heads: bool = False

    # Positions that attention reads besides hidden states.
    also_read: Mapping[str, AlsoRead] = field(default_factory=dict)
    position_modules: tuple[str, ...] = ()
    attention_table: str | None = None

    # Which layers run, and what runs between them.
    order: Callable[[PretrainedConfig], Sequence[int]] | None = None
    between: Callable[[PreTrainedModel, int, Tensor, Tensor, Tensor], Tensor] | None = None
    runs_first_layers: bool = False

    unsupported: Callable[[PretrainedConfig], str | None] | None = None

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrix kinds that layers of this family have, in order."""
        return tuple(kind for kind in MATRICES if kind in self.paths)

    @property
    def sublayers(self) -> dict[Sublayer, tuple[str, ...]]:
        """The matrix kinds of each sublayer."""
        return sublayers_of(self.paths)

    @property
    def linears(self) -> dict[str, tuple[str, ...]]:
        """The paths of the linear layers inside a layer, each with the kinds of the matrices that it holds."""
        found: dict[str, tuple[str, ...]] = {}
        for kind in self.matrices:
            found[self.paths[kind]] = (*found.get(self.paths[kind], ()), kind)
        return found

    def makes_bias(self, kind: str) -> bool:
        """Return whether a matrix gets a bias when it is removed: if it closes a sublayer in ``bias_settings``."""
        sublayer = sublayer_of(kind)
        return kind == SUBLAYERS[sublayer][-1] and sublayer in self.bias_settings

    def parts(self, kind: str) -> tuple[str, ...]:
        """Return the kinds of the matrices in the linear layer that holds ``kind``."""
        return self.linears[self.paths[kind]]
