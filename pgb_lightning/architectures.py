"""Where Q, K, V, O, W1, W2 and the sublayers live, by transformers ``model_type``.

This is the only file that knows how an encoder is built; the method sees layers, matrices and sublayers.
To support another encoder, add one :class:`Architecture`.
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
class Architecture:
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


def _bert_attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    return layer.attention(hidden, attention_mask=mask)[0]  # type: ignore[no-any-return, operator]


def _bert_feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.feed_forward_chunk(hidden)  # type: ignore[no-any-return, operator]


def _distilbert_attend(_: PreTrainedModel, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    context = layer.attention(hidden, attention_mask=mask)[0]  # type: ignore[operator]
    return layer.sa_layer_norm(context + hidden)  # type: ignore[no-any-return, operator]


def _distilbert_feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.output_layer_norm(layer.ffn(hidden) + hidden)  # type: ignore[no-any-return, operator]


def _mpnet_attend(model: PreTrainedModel, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    # All layers share the bias, which depends on the places alone: one sequence's does for all.
    bias = model.encoder.compute_position_bias(hidden[:1])  # type: ignore[operator, union-attr]
    return layer.attention(hidden, mask, bias)[0]  # type: ignore[no-any-return, operator]


def _mpnet_feed(layer: nn.Module, hidden: Tensor) -> Tensor:
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return, operator]


_BERT = Architecture(
    layers="encoder.layer",
    paths={
        "Q": "attention.self.query",
        "K": "attention.self.key",
        "V": "attention.self.value",
        "O": "attention.output.dense",
        "W1": "intermediate.dense",
        "W2": "output.dense",
    },
    cores={"attention": "attention.self", "ffn": "intermediate"},
    attend=_bert_attend,
    feed=_bert_feed,
    tokenwise=("", "feed_forward_chunk"),
    num_neurons="intermediate_size",
)

_DISTILBERT = Architecture(
    layers="transformer.layer",
    paths={
        "Q": "attention.q_lin",
        "K": "attention.k_lin",
        "V": "attention.v_lin",
        "O": "attention.out_lin",
        "W1": "ffn.lin1",
        "W2": "ffn.lin2",
    },
    cores={"attention": "attention", "ffn": "ffn"},
    attend=_distilbert_attend,
    feed=_distilbert_feed,
    tokenwise=("ffn", "ff_chunk"),
    num_neurons="hidden_dim",
)

_MPNET = Architecture(
    layers="encoder.layer",
    paths={
        **{kind: f"attention.attn.{kind.lower()}" for kind in "QKVO"},
        **{"W1": "intermediate.dense", "W2": "output.dense"},
    },
    cores={"attention": "attention.attn", "ffn": "intermediate"},
    attend=_mpnet_attend,
    feed=_mpnet_feed,
    tokenwise=None,
    num_neurons="intermediate_size",
    needs_all_heads=True,  # the position bias has a plane for each
)

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
}

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
    architecture: Architecture

    @property
    def model_type(self) -> str:
        """The transformers ``model_type``, such as ``"bert"``, also of an exported model."""
        return _family(self.model)

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return int(self.model.config.hidden_size // self.model.config.num_attention_heads)

    @property
    def attention_unit(self) -> int:
        """Features inside attention that are left out together: a head's, or all where the model needs all heads."""
        return self.inside("attention") if self.architecture.needs_all_heads else self.head_size

    def inside(self, sublayer: Sublayer) -> int:
        """Return how many features lie between the ends of a dense sublayer: those of all heads, or the neurons."""
        config = self.model.config
        return int(config.hidden_size if sublayer == "attention" else getattr(config, self.architecture.num_neurons))

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
            return self.architecture.attend(self.model, layer, hidden, mask)
        return self.architecture.feed(layer, hidden)

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder layers, first to last."""
        return list(self.model.get_submodule(self.architecture.layers).children())

    def matrix(self, layer: int, kind: str) -> nn.Module:
        """Return the module at matrix ``kind`` of layer number ``layer``.

        Raises:
            AttributeError: The matrix is gone because its sublayer was dropped.
        """
        return self.layers[layer].get_submodule(self.architecture.paths[kind])

    def find_matrix(self, layer: int, kind: str) -> nn.Module | None:
        """Return the module at a matrix, or ``None`` if it is gone with its sublayer."""
        try:
            return self.matrix(layer, kind)
        except AttributeError:
            return None

    def path(self, layer: int, kind: str) -> str:
        """Return a matrix's attribute path from the module in which the encoder was found."""
        return join_path(self.name, self.architecture.layers, str(layer), self.architecture.paths[kind])

    def linears(self) -> Iterator[tuple[tuple[int, str], nn.Linear]]:
        """Yield ``(layer number, matrix kind), linear`` for every matrix that is still dense."""
        for number in range(len(self.layers)):
            for kind in MATRICES:
                module = self.find_matrix(number, kind)
                if isinstance(module, nn.Linear):
                    yield (number, kind), module


def find_encoders(module: nn.Module) -> list[Encoder]:
    """List every encoder with a known map inside ``module``, ``module`` itself included."""
    return [
        Encoder(name, child, ARCHITECTURES[_family(child)])
        for name, child in module.named_modules()
        if _is_encoder(child)
    ]


def find_encoder(module: nn.Module, name: str | None = None) -> Encoder:
    """Return the one encoder in ``module``, or the one at attribute path ``name``.

    Args:
        module: Any module that holds a transformers encoder among its attributes.
        name: Attribute path such as ``"model.bert"``; a path to a model that wraps one encoder works too.

    Raises:
        ValueError: There is no such attribute, no encoder, more than one encoder, or only encoders without a
            map; the message says which and what to do.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> find_encoder(BertForSequenceClassification(tiny)).name
        'bert'
    """
    root = module
    if name is not None:
        try:
            root = module.get_submodule(name)
        except AttributeError as error:
            held = ", ".join(repr(found.name) for found in find_encoders(module)) or "none"
            raise ValueError(
                f"encoder={name!r} is no attribute path of {type(module).__name__}; encoders found there: {held}."
            ) from error
    found = find_encoders(root)
    where = type(module).__name__ if name is None else f"encoder={name!r} of {type(module).__name__}"
    if len(found) > 1:
        names = ", ".join(repr(join_path(name, encoder.name)) for encoder in found)
        raise ValueError(f"{where} holds {len(found)} encoders; name the one to prune with encoder=: {names}.")
    if not found:
        known = ", ".join(sorted(ARCHITECTURES))
        unmapped = sorted({str(m.config.model_type) for m in root.modules() if isinstance(m, PreTrainedModel)})
        if unmapped:
            raise ValueError(
                f"{where} holds a transformers model of type {', '.join(map(repr, unmapped))}, for which there "
                f"is no map of its layers; known are: {known}. Add an Architecture to ARCHITECTURES."
            )
        raise ValueError(
            f"{where} holds no transformers encoder; it must have a model of one of these types among its "
            f"attributes: {known}."
        )
    return Encoder(join_path(name, found[0].name), found[0].model, found[0].architecture)


def _is_encoder(module: nn.Module) -> bool:
    """Tell the model that owns the layers from the heads that wrap it."""
    if not isinstance(module, PreTrainedModel):
        return False
    architecture = ARCHITECTURES.get(_family(module))
    if architecture is None:
        return False
    try:
        layers = module.get_submodule(architecture.layers)
    except AttributeError:
        return False
    return isinstance(layers, nn.ModuleList)


def _family(model: PreTrainedModel) -> str:
    """Return the ``model_type`` under which an encoder's map is known."""
    return str(model.config.model_type).removeprefix(EXPORTED)


def join_path(*parts: str | None) -> str:
    """Join attribute paths, leaving out empty ones."""
    return ".".join(part for part in parts if part)
