"""Traces one real training batch into a DAG: leaf modules and the functions between them, as they ran.

A ``TorchFunctionMode`` sees every function outside leaf modules; tensors carry the id of the node that made them.
Optimizer steps are not part of the model and are left out.
"""

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from dgm_tb.callback.local import Local
from dgm_tb.callback.nested import named_tensors, tensors_in
from dgm_tb.graph import Edge, Node

MAX_NODES = 5000

RANDOM = frozenset(
    "rand rand_like randn randn_like randint randint_like randperm normal normal_ uniform_ bernoulli bernoulli_ "
    "multinomial poisson exponential_ log_normal_ cauchy_ geometric_ random_ gumbel_softmax".split()
)
_SHAPE_ONLY = frozenset(name for name in RANDOM if name.endswith("_like")) | {"zeros_like", "ones_like", "empty_like"}
_CONSTANTS = frozenset(
    "zeros ones full empty arange linspace tensor as_tensor eye zeros_like ones_like empty_like full_like "
    "new_zeros new_ones new_full new_empty new_tensor empty_strided".split()
)
_SAME_TENSOR = frozenset(
    "requires_grad_ retain_grad register_hook contiguous to cpu cuda float double half clone".split()
)
_LOSSES = frozenset(
    "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss "
    "huber_loss kl_div gaussian_nll_loss poisson_nll_loss hinge_embedding_loss margin_ranking_loss "
    "triplet_margin_loss soft_margin_loss multi_margin_loss multilabel_margin_loss cosine_embedding_loss "
    "ctc_loss".split()
)


@dataclass
class Trace:
    """The nodes and edges of one traced batch.

    Attributes:
        nodes: Node id -> node, in the order they ran.
        edges: Edges between them.
        inputs_of: Node id -> ids of its parents, in argument order.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    inputs_of: dict[str, list[str]] = field(default_factory=dict)

    @property
    def edges(self) -> list[Edge]:
        """All edges."""
        return [Edge(parent, node) for node, parents in self.inputs_of.items() for parent in dict.fromkeys(parents)]

    def joined(self, earlier: "Trace") -> "Trace":
        """This trace, and of an earlier one the nodes that did not run again (another branch)."""
        older = {name: node for name, node in earlier.nodes.items() if name not in self.nodes}
        return Trace({**self.nodes, **older}, {**earlier.inputs_of, **self.inputs_of})

    def pruned(self) -> "Trace":
        """Without functions from which no loss and no module can be reached (metrics, logging)."""
        keep = {node.id for node in self.nodes.values() if node.kind in ("loss", "module")}
        for node in reversed(self.nodes.values()):
            if node.id in keep:
                keep.update(self.inputs_of[node.id])
        return Trace(
            {name: node for name, node in self.nodes.items() if name in keep},
            {name: [p for p in parents if p in keep] for name, parents in self.inputs_of.items() if name in keep},
        )


class Tracer(TorchFunctionMode):
    """Traces while entered; enter and leave it once, around one training batch.

    Args:
        root: The model.
        leaves: Fully-qualified names of the modules that become one node each.
        batch: The batch, whose tensors become input nodes.
    """

    def __init__(self, root: nn.Module, leaves: Mapping[str, nn.Module], batch: Any) -> None:
        super().__init__()
        self.trace = Trace()
        self._made_by: MutableMapping[Tensor, str] = WeakIdKeyDictionary()
        self._parameters = {id(p): name for name, p in root.named_parameters()}
        self._inputs = dict(named_tensors(batch, "batch"))
        self._path: list[str] = [""]
        self._depth = 0
        self._suspended = 0
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []
        self._stance: AbstractContextManager[Any] | None = None
        for name, module in root.named_modules():
            if name in leaves and type(module).__module__.startswith("torch."):
                self._hook_leaf(name, module)
            elif name in leaves:
                self._hook_own_leaf(name, module)
            elif name and not _is_inside(name, leaves):
                self._hook_container(name, module)

    def __enter__(self) -> "Tracer":
        """Start tracing; compiled modules run eagerly meanwhile."""
        self._handles.append(register_optimizer_step_pre_hook(self._suspend))
        self._handles.append(register_optimizer_step_post_hook(self._resume))
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        return super().__enter__()  # type: ignore[no-any-return,no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        """Stop tracing and remove every hook."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and note it."""
        kwargs = kwargs or {}
        if self._depth or self._suspended or len(self.trace.nodes) >= MAX_NODES:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "backward" and args and isinstance(args[0], Tensor):
            self._note_backward(args[0])
            return func(*args, **kwargs)
        before = self._parents((args, kwargs)) if name not in _SHAPE_ONLY else []
        output = func(*args, **kwargs)
        self._note_function(name, args, before, output)
        return output

    def node_of(self, tensor: Tensor) -> str | None:
        """Id of the node that made ``tensor``, if it was traced."""
        return self._made_by.get(tensor)

    def before_leaf(self, arguments: Any) -> None:
        """Called with a leaf module's arguments; nothing to do for a trace."""

    def after_leaf(self, slot: str, module: str, output: Any) -> None:
        """Called with a leaf module's output; nothing to do for a trace."""

    def _note_function(self, name: str, args: Any, parents: list[str], output: Any) -> None:
        tensors = list(tensors_in(output))
        if not tensors or name in _CONSTANTS:
            return
        if name == "__get__" or name in _SAME_TENSOR:
            if len(parents) == 1:
                self._mark(tensors, parents[0])
            return
        is_random = name in RANDOM
        if not parents and not is_random:
            return
        kind = "random" if is_random else "detach" if name in ("detach", "detach_") else "op"
        kind = "loss" if name in _LOSSES else kind
        name = name.strip("_") or name
        node = self._add(_unique(self.trace.nodes, f"{self._path[-1]}.{name}".lstrip("."), ":"), kind, name, tensors[0])
        self.trace.inputs_of[node] = parents
        self._mark(tensors, node)

    def _note_backward(self, loss: Tensor) -> None:
        parents = self._parents(loss)
        node = self._add(_unique(self.trace.nodes, "loss", "@"), "loss", "loss", loss)
        self.trace.inputs_of[node] = parents

    def _add(
        self, node: str, kind: str, op: str, output: Tensor | None, layer: str = "", module: str | None = None
    ) -> str:
        shape = list(output.shape) if output is not None else []
        self.trace.nodes[node] = Node(node, kind, op, self._path[-1] if module is None else module, shape, layer)
        self.trace.inputs_of.setdefault(node, [])
        return node

    def _mark(self, tensors: list[Tensor], node: str) -> None:
        for tensor in tensors:
            self._made_by[tensor] = node

    def _parents(self, arguments: Any) -> list[str]:
        parents = []
        for tensor in tensors_in(arguments):
            node = self._made_by.get(tensor)
            if node is None:
                node = self._outside(tensor)
            if node is not None:
                parents.append(node)
        return parents

    def _outside(self, tensor: Tensor) -> str | None:
        """The node of a tensor from outside the traced functions: the batch, or a parameter used by itself."""
        name = next((key for key, known in self._inputs.items() if known is tensor), None)
        kind = "input"
        if name is None:
            name, kind = self._parameters.get(id(tensor)), "parameter"
        if name is None:
            return None
        if name not in self.trace.nodes:
            self._add(name, kind, kind, tensor, module=name.rpartition(".")[0] if kind == "parameter" else "")
        return name

    def _hook_leaf(self, name: str, module: nn.Module) -> None:
        entered: list[list[str]] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(self._parents((args, kwargs)) if not self._depth else [])
            if not self._depth:
                self.before_leaf((args, kwargs))
            self._depth += 1

        def after(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
            self._depth = max(0, self._depth - 1)
            if self._depth or not entered or torch._C._current_graph_task_id() != -1:
                return
            slot = self._note_call(name, module, entered.pop(), output)
            self.after_leaf(slot, name, output)

        self._handles.append(module.register_forward_pre_hook(Local(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(Local(after), with_kwargs=True, always_call=True))

    def _hook_own_leaf(self, name: str, module: nn.Module) -> None:
        """A leaf module that is none of torch's: what it does is traced, and ends in a node of its own."""

        def before(_: nn.Module, __: Any) -> None:
            self._path.append(name)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if len(self._path) > 1:
                self._path.pop()
            if not self._depth and torch._C._current_graph_task_id() == -1:
                self._note_call(name, module, self._parents(output), output)

        self._handles.append(module.register_forward_pre_hook(Local(before)))
        self._handles.append(module.register_forward_hook(Local(after), always_call=True))

    def _note_call(self, name: str, module: nn.Module, parents: list[str], output: Any) -> str:
        """Add the node of one call of a module; its id."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        slot = name if call == 0 else f"{name}@{call}"
        tensors = list(tensors_in(output))
        kind = "loss" if isinstance(module, nn.modules.loss._Loss) else "module"
        first = tensors[0] if tensors else None
        self._add(slot, kind, type(module).__name__, first, slot, name.rpartition(".")[0])
        self.trace.inputs_of[slot] = parents
        self._mark(tensors, slot)
        return slot

    def _hook_container(self, name: str, module: nn.Module) -> None:
        def before(_: nn.Module, __: Any) -> None:
            self._path.append(name)

        def after(_: nn.Module, __: Any, ___: Any) -> None:
            if len(self._path) > 1:
                self._path.pop()

        self._handles.append(module.register_forward_pre_hook(Local(before)))
        self._handles.append(module.register_forward_hook(Local(after), always_call=True))

    def _suspend(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """An optimizer steps; but a closure that it calls is the training step itself."""
        self._suspended += 1
        wrapped = tuple(map(self._traced, args))
        return wrapped, {key: self._traced(value) for key, value in kwargs.items()}

    def _traced(self, closure: Any) -> Any:
        if not callable(closure) or isinstance(closure, torch.optim.Optimizer):
            return closure

        def traced() -> Any:
            self._suspended -= 1
            try:
                return closure()
            finally:
                self._suspended += 1

        return traced

    def _resume(self, *_: Any) -> None:
        self._suspended = max(0, self._suspended - 1)


def _is_inside(name: str, leaves: Mapping[str, nn.Module]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in leaves for n in range(1, len(parts)))


def _unique(taken: Mapping[str, Any], name: str, separator: str) -> str:
    if name not in taken:
        return name
    number = 1
    while f"{name}{separator}{number}" in taken:
        number += 1
    return f"{name}{separator}{number}"
