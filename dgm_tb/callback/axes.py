"""Which axis of a module's output holds the examples: recurrent layers and transformers put time first by default."""

from torch import Tensor, nn

_DECLARING = (nn.RNNBase, nn.MultiheadAttention)
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
    """The axis of an output that holds the examples.

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
