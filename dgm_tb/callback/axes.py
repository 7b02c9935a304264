"""Axes: which one of a module's output holds the examples, and which ones of its input a function keeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_DECLARING = (nn.RNNBase, nn.MultiheadAttention)
_REDUCTIONS = frozenset(("mean", "sum", "amax", "amin", "prod", "logsumexp"))
_TRANSFORMERS = (
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)


def batch_orders(root: nn.Module) -> dict[str, bool | None]:
    """Whether examples come first in the outputs of each module.

    Args:
        root: The model.

    Returns:
        Fully-qualified name -> True (examples first), False (time first), None (not known: somewhere in the model time
        comes first, and this module is part of nothing that says so).
    """
    declared: dict[str, bool] = {}
    for name, module in root.named_modules():
        parent = name.rpartition(".")[0]
        if isinstance(module, _DECLARING):
            declared[name] = bool(module.batch_first)
        elif isinstance(module, _TRANSFORMERS):
            inner = next((m for m in module.modules() if isinstance(m, nn.MultiheadAttention)), None)
            declared[name] = inner is None or bool(inner.batch_first)
        elif parent in declared:
            declared[name] = declared[parent]
    usual = True if all(declared.values()) else None
    return {name: declared.get(name, usual) for name, _ in root.named_modules()}


def example_axis(
    module: nn.Module, suffix: str, output: Tensor, *, is_last_axis: bool, order: bool | None, n_examples: int | None
) -> int | None:
    """The axis of an output that holds the examples; recurrent layers and transformers put time first by default.

    Args:
        module: The module.
        suffix: Place of the output among the module's outputs, "" for the first one.
        output: Any shape with at least one axis.
        is_last_axis: Whether the neurons are the last axis, else axis 1.
        order: The module's entry in ``batch_orders``.
        n_examples: Number of examples in the batch, if known.

    Returns:
        0, 1, or None if no axis or more than one may be it: then nothing can be said about single examples.
    """
    if not is_last_axis:
        return 0
    if isinstance(module, _DECLARING):
        if output.dim() == 2:
            return None  # one sequence without an axis of examples, or a packed sequence
        is_state = isinstance(module, nn.RNNBase) and suffix != ""  # [layers, examples, units]
        return 1 if is_state or not module.batch_first else 0
    axes = [axis for axis in (0, 1) if axis == 0 or output.dim() > 2]
    if n_examples is not None:
        axes = [axis for axis in axes if output.shape[axis] == n_examples]
    if order is not None and len(axes) != 1:
        axes = [axis for axis in axes if axis == (0 if order else 1)]
    return axes[0] if len(axes) == 1 else None


def kept_axes(name: str, args: Sequence[Any], options: Mapping[str, Any], output: Any) -> list[int] | None:
    """Where the axes of an output were in the input of a function that reorders, selects or sums them up.

    Args:
        name: Name of the function.
        args: Its arguments, the input first.
        options: Its keyword arguments.
        output: What it gave; of several tensors the first one counts.

    Returns:
        For each axis of the output the axis of the input that it is, whole and in order, or -1; None if not known.
    """
    x = args[0] if args else options.get("input")
    y = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return None
    if name in _REDUCTIONS:
        dims = args[1] if len(args) > 1 else options.get("dim", options.get("axis"))
        if dims is None or dims == ():
            return None
        gone = {dim % x.dim() for dim in ((dims,) if isinstance(dims, int) else dims)}
        kept = [axis for axis in range(x.dim()) if axis not in gone]
        return kept if y.dim() < x.dim() else [axis if axis in kept else -1 for axis in range(x.dim())]
    if y._base is None or (y._base is not x and y._base is not x._base):
        return None
    before = list(zip(x.shape, x.stride(), strict=True))  # a view has the strides of the axes that it takes whole
    after = list(zip(y.shape, y.stride(), strict=True))
    return [before.index(one) if one[0] > 1 and before.count(one) == 1 else -1 for one in after]
