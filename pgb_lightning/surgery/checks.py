"""Check an encoder: whether it can be pruned, whether a plan fits it, and whether it matches a plan."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from pgb_lightning.encoders.base import Encoder
from pgb_lightning.encoders.family import KEY_VALUE, SUBLAYERS, sublayer_of
from pgb_lightning.encoders.find import find_encoders
from pgb_lightning.layers.dropped import DroppedCore
from pgb_lightning.layers.linear import ConstantLinear, GroupedLinear
from pgb_lightning.layers.matrix import as_matrix
from pgb_lightning.plan import MatrixPlan, PruningPlan
from pgb_lightning.surgery.folding import fold_plan
from pgb_lightning.surgery.structure import Structure


def check_prunable(encoder: Encoder) -> None:
    """Check that all matrices of an encoder are plain linear layers, so that it can be pruned (further).

    An encoder qualifies if it is dense, or pruned to fewer heads, neurons or sublayers.

    Raises:
        ValueError: If its configuration is not supported, the model does not run all of its layers, it has been pruned
            in another way, or another library has replaced its layers.
    """
    reason = None if encoder.family.unsupported is None else encoder.family.unsupported(encoder.model.config)
    if reason is not None:
        raise ValueError(f"The encoder at {encoder.where} cannot be pruned: {reason}")
    _check_all_run(encoder)
    for layer in range(encoder.num_layers):
        for kind in encoder.matrices:
            module = encoder.find_matrix(layer, kind)
            if encoder.is_dropped(layer, sublayer_of(kind)):
                continue
            assert module is not None
            if isinstance(module, (GroupedLinear, ConstantLinear)):
                what = "split into blocks" if isinstance(module, GroupedLinear) else "removed"
                raise ValueError(
                    f"The encoder at {encoder.where} is already pruned, and its layer {layer} {kind} is {what}. Only "
                    "encoders with fewer heads, neurons or sublayers can be pruned further. To remove more, start from "
                    "the dense fine-tuned model. To re-finetune this one, leave out PGBCallback (or the call of prune) "
                    "or resume with ckpt_path."
                )
            if type(module) is not nn.Linear or parametrize.is_parametrized(module):
                found = f"{type(module).__module__}.{type(module).__name__}"  # other libraries have a Linear, too
                raise ValueError(
                    f"Layer {layer} {kind} of the encoder at {encoder.where} is a {found}, but must be a plain "
                    "nn.Linear. Merge adapters and undo quantization first."
                )
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None and type(weight) is not nn.Parameter:
                raise ValueError(
                    f"Layer {layer} {kind} of the encoder at {encoder.where} has a weight of type "
                    f"{type(weight).__module__}.{type(weight).__name__}, as after quantization or sharding, but must "
                    "have a plain nn.Parameter. Undo this, or prune first."
                )
            if weight is None:
                raise ValueError(
                    f"Layer {layer} {kind} of the encoder at {encoder.where} computes its weight in a hook, as "
                    "torch.nn.utils.prune and weight_norm do. Make the weight permanent first, with "
                    "torch.nn.utils.prune.remove or remove_weight_norm."
                )
    _check_not_shared(encoder)
    _check_own_parts(encoder)
    for module in encoder.model.modules():
        if getattr(module, "chunk_size_feed_forward", 0):
            raise ValueError(
                f"The encoder at {encoder.where} has chunk_size_feed_forward={module.chunk_size_feed_forward}, which "
                "splits sequences in its feed-forward layers. Set chunk_size_feed_forward=0; the outputs are the same."
            )


def _check_all_run(encoder: Encoder) -> None:
    """Check that the model runs all of its layers.

    Raises:
        ValueError: If the configuration was changed to fewer layers, or other layers run between the runs of a layer.
    """
    count, run = encoder.num_layers, int(encoder.model.config.num_hidden_layers)
    if encoder.family.runs_first_layers and run < count:
        raise ValueError(
            f"The encoder at {encoder.where} has {count} layers, but its configuration has num_hidden_layers={run}, so "
            f"it runs only these. Remove the others first, with model.{encoder.family.layers} = "
            f"model.{encoder.family.layers}[:{run}], or set num_hidden_layers={count}."
        )
    order = list(encoder.order)
    if order != sorted(order):
        raise ValueError(
            f"The encoder at {encoder.where} runs its layers in the order {order}. Only encoders whose layers make all "
            "of their runs one after another can be pruned, such as [0, 0, 1, 1]."
        )


def _check_not_shared(encoder: Encoder) -> None:
    """Check that every matrix is used in one place only, since a plan cannot prune it differently in two places.

    Several names for the same layer or for the whole encoder are allowed.

    Raises:
        ValueError: If a weight is used by two layers, by another module, or by another encoder.
    """
    places: dict[int, str] = {}
    linears = {id(linear): linear for linear, _ in encoder.hook_points()}
    for linear, matrices in encoder.hook_points():
        layer, kind = next(iter(matrices))
        place = f"Layer {layer} {kind}"
        if (first := places.setdefault(id(linear.weight), place)) != place:
            raise ValueError(
                f"{place} of the encoder at {encoder.where} shares its weight with {first}. Give each layer its own "
                "weights first, with copy.deepcopy."
            )
    for root in encoder.roots:
        for name, module in root.named_modules():
            for weight in module.parameters(recurse=False):
                if id(module) not in linears and id(weight) in places:
                    raise ValueError(
                        f"{places[id(weight)]} of the encoder at {encoder.where} shares its weight with "
                        f"{name!r}, which would keep the dense one. Give {name!r} its own weight first, with "
                        "copy.deepcopy."
                    )
    for other in find_encoders(encoder.roots[0]):
        shared = [n for n, layer in enumerate(encoder.layers) if any(layer is its for its in other.layers)]
        if shared and list(other.stack) != list(encoder.stack):
            raise ValueError(
                f"The encoders at {encoder.where} and {other.where} share layers {shared}, but not all. Give one of "
                "them its own layers first, with copy.deepcopy."
            )


def _check_own_parts(encoder: Encoder) -> None:
    """Check that no layers share other parameters of what is removed or frozen with a sublayer, such as pre-norms.

    Raises:
        ValueError: If two layers share a parameter.
    """
    matrices = {id(linear) for linear, _ in encoder.hook_points()}
    places: dict[int, tuple[int, str]] = {}
    for number, layer in enumerate(encoder.layers):
        for path in (*encoder.family.norms.values(), *encoder.family.cores.values()):
            for name, module in layer.get_submodule(path).named_modules(prefix=path):
                own = () if id(module) in matrices else module.parameters(recurse=False)
                for first, other in (places.setdefault(id(parameter), (number, name)) for parameter in own):
                    if first != number:
                        raise ValueError(
                            f"Layer {number} {name} of the encoder at {encoder.where} shares parameters with layer "
                            f"{first} {other}, so neither can be removed alone. Give each layer its own modules first, "
                            "with copy.deepcopy."
                        )


def check_complete(encoder: Encoder) -> None:
    """Check that no sublayer is dropped, as the paper's search for group numbers requires.

    Raises:
        ValueError: If an earlier pruning has dropped a sublayer.
    """
    for layer in range(encoder.num_layers):
        for sublayer in SUBLAYERS:
            if encoder.is_dropped(layer, sublayer):
                raise ValueError(
                    f"search='groups' sets the group number of every matrix, but the encoder at {encoder.where} is "
                    f"already pruned: the {sublayer} sublayer of its layer {layer} was dropped. Use search='shapes' "
                    "(preset 'default') to prune it further, or start from the dense fine-tuned model."
                )


def check_plan(encoder: Encoder, plan: PruningPlan) -> None:
    """Check that a plan fits an encoder in its current state, dense or pruned.

    Raises:
        ValueError: If it does not; the message names the first mismatch.
    """
    check_prunable(encoder)
    if plan.model_type != encoder.model_type:
        raise ValueError(
            f"The plan has model_type={plan.model_type!r}, but the encoder's model_type is {encoder.model_type!r}. Use "
            "a plan that was made for this model."
        )
    if plan.num_layers != encoder.num_layers:
        raise ValueError(
            f"The plan has {plan.num_layers} layers, but the encoder has {encoder.num_layers}. Use a plan that was "
            "made for this model."
        )
    if plan.dense_sizes is None and is_pruned(encoder):
        raise ValueError(
            f"The encoder at {encoder.where} is already pruned, but the plan was made for the dense one. Apply it to "
            "the dense fine-tuned model, or make a plan for the pruned one."
        )
    if plan.dense_sizes is not None and plan.dense_sizes != dense_sizes(encoder):
        raise ValueError(
            f"The plan has dense_sizes={dict(plan.dense_sizes)}, but those of the encoder at {encoder.where} are "
            f"{dense_sizes(encoder)}. Use a plan that was made for this model."
        )
    for layer in range(encoder.num_layers):
        for kind in encoder.matrices:
            matrix = plan.matrix(layer, kind)
            linear = None if encoder.is_dropped(layer, sublayer_of(kind)) else as_matrix(encoder.matrix(layer, kind))
            size = encoder.matrix_size(kind, 0) if linear is None else (linear.in_features, linear.out_features)
            if (matrix.rows, matrix.columns) != size:
                raise ValueError(
                    f"Layer {layer} {kind}: the plan's matrix is {matrix.rows} x {matrix.columns}, but the encoder's "
                    f"is {size[0]} x {size[1]}. Use a plan that was made for this model in its current state."
                )


def dense_sizes(encoder: Encoder) -> dict[str, int]:
    """Return the inner features of each sublayer before any pruning."""
    sizes: dict[str, int] = {sublayer: encoder.inner_size(sublayer) for sublayer in SUBLAYERS}
    if encoder.queries_per_key > 1:
        sizes |= {kind: encoder.matrix_size(kind, sizes["attention"])[1] for kind in KEY_VALUE}
    return sizes


def is_pruned(encoder: Encoder) -> bool:
    """Return whether any matrix of an encoder was pruned."""
    if any(isinstance(m, (GroupedLinear, ConstantLinear, DroppedCore)) for m in encoder.model.modules()):
        return True
    for layer in range(encoder.num_layers):
        for sublayer, kinds in encoder.sublayers.items():
            opening = encoder.find_matrix(layer, kinds[0])
            if isinstance(opening, nn.Linear) and opening.out_features < encoder.inner_size(sublayer):
                return True
    return False


def matches(encoder: Encoder, plan: PruningPlan) -> bool:
    """Return whether an encoder has the structure that a plan gives.

    Permutations may be folded, or not folded as in encoders that were pruned by earlier releases.
    """
    if plan.model_type != encoder.model_type or plan.num_layers != encoder.num_layers:
        return False
    if plan.dense_sizes is not None and plan.dense_sizes != dense_sizes(encoder):
        return False
    try:
        structure = Structure.of(encoder)
    except TypeError:  # another library has replaced a layer
        return False
    return any(
        structure == Structure.from_plan(encoder, plan, fold_orders)
        and all(
            _has_index(encoder, matrix)
            for _, _, folded in fold_plan(plan, encoder.attention_unit, fold_orders)
            for matrix in folded.matrices.values()
        )
        for fold_orders in (True, False)
    )


def _has_index(encoder: Encoder, matrix: MatrixPlan) -> bool:
    """Return whether the blocks of a matrix, if it has any, are at the positions that a plan gives."""
    module = encoder.find_matrix(matrix.layer, matrix.kind)
    if module is None or not matrix.input_index or not matrix.output_index:
        return True
    rows, columns = as_matrix(module).index()
    planned = (matrix.input_index, matrix.output_index)
    return planned == (tuple(map(tuple, rows.tolist())), tuple(map(tuple, columns.tolist())))
