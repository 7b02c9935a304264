"""Which weights come into which neuron: the tensors of each module, and the neuron that each row belongs to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dgm_tb.callback.effective import Compute, effective_weight
from dgm_tb.callback.shards import Shard, is_distributed_tensor, local, oddity, shard_of
from dgm_tb.graph import Weight


@dataclass(frozen=True)
class _Rows:
    """A tensor of weights, and which neurons its rows belong to.

    Attributes:
        name: Attribute of the module.
        axis: Axis of the neurons: 0 for ``[out, in, ...]``, 1 for transposed convolutions ``[in, out / groups, ...]``,
            -1 for embeddings.
        groups: Groups of a transposed convolution.
        start: The neuron of the first row.
        period: Rows this far apart belong to the same neuron (the gates of a recurrent unit); None: none do.
    """

    name: str
    axis: int = 0
    groups: int = 1
    start: int = 0
    period: int | None = None

    def n_neurons(self, shape: Sequence[int]) -> int:
        return self.period or (shape[self.axis] * self.groups if shape else 1)

    def owners(self, shape: Sequence[int], local: Sequence[int], offset: Sequence[int]) -> Tensor:
        """The neuron of every value that ``norms_of_rows`` gives for the part of size ``local`` at ``offset``."""
        if not shape:
            return torch.zeros(1, dtype=torch.int64)
        neurons = offset[self.axis] + torch.arange(local[self.axis])
        if self.axis == 1:
            groups = (offset[0] + torch.arange(local[0])) // (shape[0] // self.groups)
            neurons = (groups[:, None] * shape[1] + neurons).flatten()
        return self.start + (neurons % self.period if self.period else neurons)


@dataclass
class Part:
    """A tensor with weights of an entry's neurons.

    Attributes:
        number: Number of the tensor among all that are watched.
        rows: What it is.
        owners: The neuron of every value that ``norms_of_rows`` gives, counted from the entry's first one; left empty
            where that is plain (``Incoming.is_simple``).
        n_copies: How many processes hold the same values.
    """

    number: int
    rows: _Rows
    owners: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    n_copies: int = 1


@dataclass
class Incoming:
    """The weights of one module's neurons.

    Attributes:
        entry: Them in the graph record.
        parts: The tensors.
        is_simple: Whether all is in one tensor, here and nowhere else, with one row (or column) per neuron.
    """

    entry: Weight
    parts: list[Part]
    is_simple: bool

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """The L2 norm of every neuron's incoming weights ``[neurons]``, float32 or wider.

        Args:
            tensors: All that are watched, the local part of each. Where others hold parts, too, the sum of squares over
                all processes is the whole.
        """
        if self.is_simple:
            rows = self.parts[0].rows
            norms = norms_of_rows(tensors[self.parts[0].number], rows.axis)
            return norms if rows.axis != 1 else _norm(norms.reshape(rows.groups, -1, norms.shape[1]), 1).flatten()
        squares: Tensor | None = None
        for part in self.parts:
            own = norms_of_rows(tensors[part.number], part.rows.axis).flatten().square_()
            if squares is None:
                squares = own.new_zeros(self.entry.neurons)
            part.owners = part.owners.to(own.device)
            squares.index_add_(0, part.owners, own.to(squares), alpha=1 / part.n_copies)
        assert squares is not None
        return squares.sqrt_()


def norms_of_rows(weight: Tensor, axis: int) -> Tensor:
    """The norm of every row of a tensor of weights, float32 or wider.

    Args:
        weight: Any floating-point or complex tensor.
        axis: 0: a row is a slice along axis 0 ``-> [rows]``; 1: one along axes 0 and 1 ``-> [n, m]``; -1: a column.
    """
    if weight.dtype is not torch.float32:
        weight = torch.view_as_real(weight) if weight.is_complex() else wide(weight)
    n_axes = weight.dim()
    if n_axes < 2:
        return weight.reshape(-1).abs()
    if axis < 0:
        return _norm(weight, 0)
    return _norm(weight if n_axes == axis + 2 else weight.flatten(axis + 1), -1)


def wide(tensor: Tensor) -> Tensor:
    """The tensor itself, in float32 if it is of lower precision."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def _norm(x: Tensor, axis: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, 2, axis)
    return norm


@dataclass
class Computed:
    """A weight that is no parameter.

    Attributes:
        name: The entry it belongs to.
        compute: Gives it as it is now; may raise.
        shape: Its shape.
    """

    name: str
    compute: Compute
    shape: torch.Size


class Finder:
    """Finds the incoming weights of a model, and again once lazy parameters have got their shape.

    Args:
        root: The model.
        parameters: All its parameters; they are the first tensors that are watched.
        twins: ``id`` of a parameter -> the one of ``parameters`` that stands for it.
        n_processes: How many processes hold the weights together; 1 if each has all of them.

    Attributes:
        found: One per module with incoming weights (recurrent layers: one per layer); append-only.
        computed: Weights that are no parameters; they are the tensors after ``parameters``.
        computed_bytes: Their size.
        reasons: Name of an entry -> why it is left out.
    """

    def __init__(
        self, root: nn.Module, parameters: Sequence[Tensor], twins: Mapping[int, Tensor], n_processes: int
    ) -> None:
        self.found: list[Incoming] = []
        self.computed: list[Computed] = []
        self.computed_bytes = 0
        self.reasons: dict[str, str] = {}
        self._root = root
        self._twins = twins
        self._n_parameters = len(parameters)
        self._numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._n_processes = n_processes
        self._known: set[str] = set()
        self._used: set[int] = set()

    @property
    def neurons(self) -> int:
        """Number of all neurons."""
        return self.found[-1].entry.offset + self.found[-1].entry.neurons if self.found else 0

    def look(self) -> None:
        """Find what has not been found yet."""
        for path, module in self._root.named_modules():
            for name, rows in _tensors_of(path, module):
                if name not in self._known:
                    self._known.add(name)
                    try:
                        self._add(name, module, rows)
                    except Exception as error:
                        self.reasons[name] = f"{type(error).__name__}: {error}"

    def _add(self, name: str, module: nn.Module, rows: Sequence[_Rows]) -> None:
        weights = [weight for row in rows if (weight := self._weight(module, row.name)) is not None]
        if len(weights) < len(rows) or any(id(weight) in self._used for weight in weights):
            return
        if any(isinstance(weight, Tensor) and is_lazy(weight) for weight in weights):
            self._known.discard(name)
            return
        tensors = [weight if isinstance(weight, Tensor) else self._computed(weight) for weight in weights]
        if not all(map(_is_watchable, tensors)):
            return
        neurons = max(row.start + row.n_neurons(tensor.shape) for row, tensor in zip(rows, tensors, strict=True))
        is_simple = len(rows) == 1 and rows[0].period is None and self._n_processes == 1
        numbers = [self._number(name, *each) for each in zip(weights, tensors, strict=True)]
        if is_simple:
            parts = [Part(numbers[0], rows[0])]
        else:
            parts = [self._part(*each) for each in zip(numbers, rows, tensors, strict=True)]
        entry = Weight(name, ", ".join(row.name for row in rows), neurons, self.neurons)
        self.found.append(Incoming(entry, parts, is_simple))
        self._used.update(map(id, weights))

    def _weight(self, module: nn.Module, name: str) -> Tensor | Compute | None:
        parameter = module._parameters.get(name)
        if parameter is None:
            return effective_weight(module, name)
        weight = self._twins.get(id(parameter), parameter)
        return weight if id(weight) in self._numbers else None

    def _computed(self, compute: Compute) -> Tensor:
        if self._n_processes > 1:
            raise ValueError("they are computed from weights of which each process holds a part")
        with torch.no_grad():
            return compute()

    def _number(self, name: str, weight: Tensor | Compute, tensor: Tensor) -> int:
        if isinstance(weight, Tensor):
            return self._numbers[id(weight)]
        self.computed.append(Computed(name, weight, tensor.shape))
        self.computed_bytes += tensor.numel() * tensor.element_size()
        return self._n_parameters + len(self.computed) - 1

    def _part(self, number: int, rows: _Rows, tensor: Tensor) -> Part:
        with torch.no_grad():
            own = local(tensor).shape
        is_shard = is_distributed_tensor(tensor)
        shard = shard_of(tensor) if is_shard else Shard((0,) * tensor.dim(), self._n_processes)
        return Part(number, rows, rows.owners(tensor.shape, own, shard.offset), shard.n_copies)


def _is_watchable(tensor: Tensor) -> bool:
    """Whether a tensor holds weights with a norm.

    Raises:
        TypeError: If it does, but none that can be watched.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return False
    if not is_distributed_tensor(tensor) and (reason := oddity(tensor)):
        raise TypeError(f"they are {reason}")
    return True


def _tensors_of(path: str, module: nn.Module) -> Iterator[tuple[str, list[_Rows]]]:
    """The entries of a module: their names, and the tensors that their weights are in."""
    if isinstance(module, nn.RNNBase):
        yield from _recurrent_layers(path, module)
    elif isinstance(module, nn.RNNCellBase):
        yield path, [_Rows("weight_ih", period=module.hidden_size), _Rows("weight_hh", period=module.hidden_size)]
    elif isinstance(module, nn.MultiheadAttention):
        size = module.embed_dim
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        separate = [_Rows(name, start=number * size) for number, name in enumerate(names)]
        yield path, [_Rows("in_proj_weight")] if module._qkv_same_embed_dim else separate
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        yield path, [_Rows("weight", 1, module.groups)]
    else:
        yield path, [_Rows("weight", -1 if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else 0)]


def _recurrent_layers(path: str, module: nn.RNNBase) -> Iterator[tuple[str, list[_Rows]]]:
    """One entry per layer with a neuron per output of it, and one more for its hidden units if these are projected."""
    suffixes = ["", "_reverse"] if module.bidirectional else [""]
    size, n_outputs = module.hidden_size, module.proj_size
    for layer in range(module.num_layers):
        is_last = layer == module.num_layers - 1
        hidden = [
            _Rows(f"weight_{kind}_l{layer}{suffix}", start=number * size, period=size)
            for number, suffix in enumerate(suffixes)
            for kind in ("ih", "hh")
        ]
        outputs = [_Rows(f"weight_hr_l{layer}{s}", start=number * n_outputs) for number, s in enumerate(suffixes)]
        if n_outputs:
            yield f"{path}[l{layer}.hidden]", hidden
        yield path if is_last else f"{path}[l{layer}]", outputs if n_outputs else hidden
