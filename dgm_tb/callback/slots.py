"""Which modules are observed, which axis of their output holds the neurons, and where each neuron's numbers go."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgm_tb.callback.axes import example_axis
from dgm_tb.graph import Layer

MAX_CALLS = 8
"""Further calls of one module in one step are not recorded, unless they are turns of one loop: those are one slot."""

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_SAME_VALUES = (nn.Flatten, nn.Unflatten, nn.Identity)
_ZEROING = (
    *(nn.ReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink),
    *(nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    *(nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.padding._ConstantPadNd),
    *(nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.Embedding),
)
"""Modules that make exact zeros, or pass them on from those that do."""

_COMPOSITE_LEAVES = (nn.MultiheadAttention,)


@dataclass
class Slot:
    """One call of one module in a step, one output of it: a *layer* of the recording.

    Attributes:
        name: See ``dgm_tb.graph.Layer``.
        module: Fully-qualified module name.
        type: Class name.
        neurons: Number of neurons.
        offset: Number of its first neuron.
        is_last_axis: Whether the neurons lie on the last axis of the output, else on axis 1.
        counts_zeros: Whether exact zeros are counted (they are common), else only neurons constant at zero are.
        shape: Output shape when first seen.
        example_axis: The axis of the output that holds the examples, or None: nothing is known of single examples.
        pivot: Subtracted from every neuron's values before they are squared ``[neurons]``, or None: where the mean is
            many times the standard deviation, squares alone would leave nothing of the latter in float32.
        n_observed: How often the slot was observed.
    """

    name: str
    module: str
    type: str
    neurons: int
    offset: int
    is_last_axis: bool
    counts_zeros: bool
    shape: tuple[int, ...]
    example_axis: int | None = 0
    pivot: Tensor | None = None
    n_observed: int = 0

    @property
    def columns(self) -> slice:
        """The slot's neurons in an array over all neurons."""
        return slice(self.offset, self.offset + self.neurons)

    def example(self, tensor: Tensor, position: int) -> Tensor | None:
        """One example of a tensor with the axes of the slot's output, which it keeps; None if it can't be told."""
        axis = self.example_axis
        is_there = axis is not None and tensor.dim() > axis and position < tensor.shape[axis]
        return tensor.narrow(axis, position, 1) if axis is not None and is_there else None

    def to_layer(self) -> Layer:
        """The slot as the graph record tells of it."""
        return Layer(self.name, self.module, self.type, self.neurons, self.offset, list(self.shape))


def type_name(module: nn.Module) -> str:
    """Class name of a module, without what weight or spectral normalisation put in front of it."""
    name = type(module).__name__
    return name.removeprefix("Parametrized") if parametrize.is_parametrized(module) else name


def observable_modules(root: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules whose outputs are recorded.

    Args:
        root: The LightningModule or model.

    Returns:
        Fully-qualified name -> module, for every leaf but losses, metrics and shape-only modules; and name -> why not.
    """
    chosen: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    inside: tuple[str, ...] = ()
    for name, module in root.named_modules():
        if not name or name.startswith(inside):
            continue
        if type(module).__module__.startswith("torchmetrics"):
            inside = (*inside, f"{name}.")
            continue
        if isinstance(module, _COMPOSITE_LEAVES):
            inside = (*inside, f"{name}.")
        elif any(child != "parametrizations" for child, _ in module.named_children()):
            continue
        else:
            inside = (*inside, f"{name}.parametrizations")
        if isinstance(module, nn.modules.loss._Loss):
            continue
        if isinstance(module, _SAME_VALUES) or type(module) is nn.Sequential:  # an empty one
            skipped[name] = f"{type(module).__name__} passes its input on unchanged"
        elif isinstance(module, torch.jit.ScriptModule):
            skipped[name] = "a scripted module runs no hooks"
        else:
            chosen[name] = module
    return chosen, skipped


def floating_outputs(output: Any, module: nn.Module | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in a module's output whose neurons are recorded, with its place as a suffix.

    Attention weights are recorded per head ``[examples, heads, targets, sources]``. Averaged over the heads they have
    no neurons: as many rows and columns as the sequences are long.

    Yields:
        ``("", tensor)`` for the first one, then ``("[1]", tensor)``, ``("[key]", tensor)`` for the others of a tuple,
        list, dict or dataclass.
    """
    for number, (suffix, tensor) in enumerate(_leaves(output, "")):
        if number == 0 or not isinstance(module, nn.MultiheadAttention) or tensor.dim() == 4:
            yield ("" if number == 0 else suffix), tensor


def _leaves(output: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel() and output.dim():
            yield prefix, output
    elif isinstance(output, Mapping):
        for key, item in output.items():
            yield from _leaves(item, f"{prefix}[{key}]")
    elif isinstance(output, (tuple, list)):
        for number, item in enumerate(output):
            yield from _leaves(item, f"{prefix}[{number}]")
    elif is_dataclass(output) and not isinstance(output, type):
        for key, item in vars(output).items():
            yield from _leaves(item, f"{prefix}[{key}]")


def new_slot(
    name: str,
    path: str,
    module: nn.Module,
    output: Tensor,
    offset: int,
    *,
    input_axis: bool | None,
    order: bool | None = True,
    n_examples: int | None = None,
) -> Slot:
    """The slot for a module's output seen for the first time.

    Args:
        name: Name of the slot.
        path: Fully-qualified module name.
        module: The module.
        output: Its output, at least one axis.
        offset: Number of its first neuron.
        input_axis: ``is_last_axis`` of the slot whose neurons came in, if known: element-wise modules keep it.
        order: Whether examples come first, see ``axes.batch_orders``.
        n_examples: Number of examples in the batch, if known.
    """
    shape, suffix = tuple(output.shape), name.partition("[")[2]
    if isinstance(module, nn.MultiheadAttention) and suffix:
        is_last = False  # heads
    elif output.dim() <= 2 or isinstance(module, _CHANNELS_LAST):
        is_last = True
    elif isinstance(module, _CHANNELS_FIRST):
        is_last = False
    elif input_axis is not None:
        is_last = input_axis
    else:
        is_last = output.dim() == 3
    neurons = 1 if output.dim() == 1 else shape[-1] if is_last else shape[1]
    counts_zeros = isinstance(module, _ZEROING) or not type(module).__module__.startswith("torch.")
    examples = example_axis(module, suffix, output, is_last_axis=is_last, order=order, n_examples=n_examples)
    return Slot(name, path, type_name(module), neurons, offset, is_last, counts_zeros, shape, examples)
