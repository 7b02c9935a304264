"""Traces one real training batch into a DAG: leaf modules and the functions between them, as they ran.

A ``TorchFunctionMode`` sees every function outside leaf modules; tensors carry the id of the node that made them.
What trainers and optimizers do around the model is no part of it and is left out.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from dgm_tb.callback.axes import kept_axes
from dgm_tb.callback.callers import calling_site
from dgm_tb.callback.local import Local
from dgm_tb.callback.loops import is_upstream
from dgm_tb.callback.modes import put_below, take_out
from dgm_tb.callback.nested import named_tensors, tensors_in
from dgm_tb.callback.slots import floating_outputs, type_name
from dgm_tb.callback.trace import Trace
from dgm_tb.graph import Node

MAX_NODES = 10_000
"""What comes after so many calls is not traced."""

RANDOM = frozenset(
    "rand rand_like randn randn_like randint randint_like randperm normal normal_ uniform_ bernoulli bernoulli_ "
    "multinomial poisson exponential_ log_normal_ cauchy_ geometric_ random_ gumbel_softmax".split()
)
_SHAPE_ONLY = frozenset(name for name in RANDOM if name.endswith("_like")) | {"zeros_like", "ones_like", "empty_like"}
_OVERWRITING = frozenset(name for name in RANDOM if name.endswith("_")) | {"copy_"}
_CONSTANTS = frozenset(
    "zeros ones full empty arange linspace tensor as_tensor eye zeros_like ones_like empty_like full_like zero_ fill_ "
    "new_zeros new_ones new_full new_empty new_tensor empty_strided".split()
)
_SAME_TENSOR = frozenset(
    "requires_grad_ retain_grad contiguous to cpu cuda float double half bfloat16 type type_as clone".split()
)
_PROPERTIES = frozenset("T mT H mH real imag data".split())
_DETACHING = frozenset(("detach", "detach_", "data"))
_BASE_NAMES = {f"{prefix}{name}": name for prefix in "ri" for name in "add sub mul div pow matmul mod".split()} | {
    name: base
    for base, names in {"div": "truediv rtruediv itruediv", "detach": "data"}.items()
    for name in names.split()
}
_LOSSES = frozenset(
    "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss "
    "huber_loss kl_div gaussian_nll_loss poisson_nll_loss hinge_embedding_loss margin_ranking_loss "
    "triplet_margin_loss soft_margin_loss multi_margin_loss multilabel_margin_loss cosine_embedding_loss "
    "ctc_loss".split()
)

_T = TypeVar("_T")

Source = tuple[str, str]
"""The node that made a tensor, and which of its outputs it is, if not the first one."""


class Tracer(TorchFunctionMode):
    """Traces while entered; enter and leave it once, around one training batch.

    Args:
        root: The model.
        leaves: Fully-qualified names of the modules that become one node each.
        batch: The batch, whose tensors become input nodes.
        loops: Names of the modules that are called in a loop on their own last output; those found are added.

    Attributes:
        trace: What was seen so far.
        failure: Why tracing stopped before the end, or "".
        is_aside: Whether what runs now is no part of the step.
    """

    def __init__(
        self, root: nn.Module, leaves: Mapping[str, nn.Module], batch: Any, loops: set[str] | None = None
    ) -> None:
        super().__init__()
        self.trace = Trace()
        self.failure = ""
        self.loops = set() if loops is None else loops
        self._made_by: MutableMapping[Tensor, Source] = WeakIdKeyDictionary()
        self._parameters = {id(p): name for name, p in root.named_parameters()}
        self._inputs = {id(tensor): (name, tensor) for name, tensor in named_tensors(batch, "batch")}
        self._path: list[str] = [""]
        self._depth = 0
        self._suspended = 0
        self.is_aside = False
        self._rank: dict[str, int] = {}
        self._n_named: dict[str, int] = {}
        self._last_call: dict[str, tuple[str, int]] = {}
        self._last_turn = -1
        self._handles: list[Any] = []
        self._stance: AbstractContextManager[Any] | None = None
        for name, module in root.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # runs no hooks
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
        put_below(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop tracing and remove every hook."""
        take_out(self)
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and note it."""
        kwargs = kwargs or {}
        if not self._is_tracing or len(self.trace.nodes) >= MAX_NODES:
            return func(*args, **kwargs)
        sources = self._try(self._before_function, func, args, kwargs)
        output = func(*args, **kwargs)
        if sources is not None:
            self._try(self._after_function, func, sources, args, kwargs, output)
        return output

    def note_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Take tensors as inputs of the model, by name, where they are not known yet."""
        self._inputs = {id(tensor): (name, tensor) for name, tensor in inputs.items()} | self._inputs

    def node_of(self, tensor: Tensor) -> str | None:
        """Id of the node that made ``tensor``, if it was traced."""
        made_by = self._made_by.get(tensor)
        return None if made_by is None else made_by[0]

    def before_leaf(self, arguments: Any) -> None:
        """Called with a leaf module's arguments; nothing to do for a trace."""

    def after_leaf(self, slot: str, module: str, output: Any) -> None:
        """Called with a leaf module's output; nothing to do for a trace."""

    @property
    def _is_tracing(self) -> bool:
        """Not inside a leaf module, an optimizer, or a backward pass that recomputes activations."""
        is_outside = not self._depth and not self._suspended and not self.failure and not self.is_aside
        return is_outside and torch._C._current_graph_task_id() == -1

    def _try(self, method: Callable[..., _T], *args: Any) -> _T | None:
        """Call a method of ours inside the user's step: an error ends the trace and not the training."""
        try:
            return method(*args)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            return None

    # -- functions -----------------------------------------------------------------------------------------------------

    def _before_function(self, func: Any, args: Any, kwargs: Any) -> list[Source]:
        """What goes into a function; known before it runs, since it may overwrite it."""
        name = getattr(func, "__name__", "")
        if name == "backward":
            self._note_backward((args[:1], kwargs.get("tensors")))
        if name in _SHAPE_ONLY:
            return []
        if name in _SAME_TENSOR:
            return self._sources(args[:1])
        if name in _OVERWRITING:
            args = args[1:]
        return self._sources((args, [value for key, value in kwargs.items() if key != "out"]))

    def _after_function(self, func: Any, sources: list[Source], args: Any, kwargs: Any, output: Any) -> None:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
            if name not in _PROPERTIES:
                return
        node = self._note_function(name, sources, args[0] if name == "__setitem__" else output)
        axes = kept_axes(name, args, kwargs, output) if node else None
        if axes is not None:
            self.trace.axes[node] = axes

    def _note_function(self, name: str, sources: list[Source], output: Any) -> str:
        """Add the node of a function; its id, or "" if it is none of the model's."""
        tensors = list(tensors_in(output))
        is_random = name in RANDOM
        if not tensors or name in _CONSTANTS or not (sources or is_random):
            return ""
        site, by_trainer = calling_site()
        if by_trainer or name in _SAME_TENSOR:
            if sources:
                self._mark(tensors, sources[0])
            return ""
        kind = "random" if is_random else "detach" if name in _DETACHING else "loss" if name in _LOSSES else "op"
        op = name.strip("_") or name
        op = _BASE_NAMES.get(op, op)
        node = self._new_name(f"{self._path[-1]}.{op}".lstrip("."), ":")
        self._add(
            Node(node, kind, op, self._path[-1], list(tensors[0].shape)), sources, hash((self._path[-1], op, site))
        )
        self._mark(tensors, (node, ""))
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            self._mark([t._base for t in tensors if t._base is not None], (node, ""))
        return node

    def _note_backward(self, loss: Any) -> None:
        tensors = list(tensors_in(loss))
        if tensors:
            node = Node(self._new_name("loss", "@"), "loss", "loss", "", list(tensors[0].shape))
            self._add(node, self._sources(tensors), None)

    # -- nodes and edges -----------------------------------------------------------------------------------------------

    def _add(self, node: Node, sources: Iterable[Source], site: int | None) -> None:
        self._rank[node.id] = len(self._rank)
        self.trace.nodes[node.id] = node
        self.trace.inputs_of[node.id] = [parent for parent, _ in sources]
        for parent, place in sources:
            self.trace.outputs.setdefault((parent, node.id), set()).add(place)
        if site is not None:
            self.trace.sites[node.id] = site

    def _new_name(self, name: str, separator: str) -> str:
        """``name``, with a number from its second use on."""
        number = self._n_named[name] = self._n_named.get(name, -1) + 1
        return f"{name}{separator}{number}" if number else name

    def _mark(self, tensors: Iterable[Tensor], source: Source) -> None:
        for tensor in tensors:
            if id(tensor) not in self._parameters:
                self._made_by[tensor] = source

    def _sources(self, arguments: Any) -> list[Source]:
        """What made the tensors among the arguments, one for each that is known."""
        found = [self._made_by.get(tensor) or self._outside(tensor) for tensor in tensors_in(arguments)]
        return [source for source in found if source is not None]

    def _parents(self, arguments: Any) -> list[str]:
        return [parent for parent, _ in self._sources(arguments)]

    def _outside(self, tensor: Tensor) -> Source | None:
        """The node of a tensor from outside the traced functions: the batch, or a parameter used by itself."""
        kind, module = "input", ""
        name, known = self._inputs.get(id(tensor), ("", None))
        if known is not tensor:
            kind, name = "parameter", self._parameters.get(id(tensor), "")
            module = name.rpartition(".")[0]
        if not name:
            return None
        if name not in self.trace.nodes:
            self._add(Node(name, kind, kind, module, list(tensor.shape)), [], None)
        return name, ""

    # -- modules -------------------------------------------------------------------------------------------------------

    def _hook_leaf(self, name: str, module: nn.Module) -> None:
        entered: list[tuple[list[Source], int]] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(self._try(self._enter_call, name, (args, kwargs)) or ([], 0))
            if not self._depth:
                self.before_leaf((args, kwargs))
            self._depth += 1

        def after(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
            self._depth = max(0, self._depth - 1)
            sources, site = entered.pop() if entered else ([], 0)
            slot = self._try(self._note_call, name, module, sources, output, site) if self._is_tracing else None
            if slot is not None:
                self.after_leaf(slot, name, output)

        self._handles.append(module.register_forward_pre_hook(Local(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(Local(after), with_kwargs=True, always_call=True))

    def _hook_own_leaf(self, name: str, module: nn.Module) -> None:
        """A leaf module that is none of torch's: what it does is traced, and ends in a node of its own."""
        entered: list[tuple[list[Source], int]] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(self._try(self._enter_call, name, (args, kwargs)) or ([], 0))
            self._path.append(name)

        def after(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
            if len(self._path) > 1:
                self._path.pop()
            sources, site = entered.pop() if entered else ([], 0)
            if self._is_tracing:
                made_by = self._try(self._sources, output) or sources
                self._try(self._note_call, name, module, made_by, output, site)

        self._handles.append(module.register_forward_pre_hook(Local(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(Local(after), with_kwargs=True, always_call=True))

    def _enter_call(self, name: str, arguments: Any) -> tuple[list[Source], int]:
        """What goes into a call of a leaf module, and where it is called."""
        if not self._is_tracing:
            return [], 0
        sources, (site, _) = self._sources(arguments), calling_site()
        if name not in self.loops and self._is_next_turn(name, site, sources):
            self.loops.add(name)
        return sources, site

    def _is_next_turn(self, name: str, site: int, sources: list[Source]) -> bool:
        """Whether the same code calls the module again, on what came out of it last time, or inside such a loop."""
        last, last_site = self._last_call.get(name, ("", 0))
        if not last or last_site != site:
            return False
        is_turn = self._last_turn > self._rank[last] or any(
            parent == last or is_upstream(self.trace.inputs_of, self._rank, last, parent) for parent, _ in sources
        )
        if is_turn:
            self._last_turn = len(self._rank)
        return is_turn

    def _note_call(self, name: str, module: nn.Module, sources: list[Source], output: Any, site: int) -> str:
        """Add the node of one call of a module; its id."""
        slot = self._new_name(name, "@")
        tensors = list(tensors_in(output))
        kind = "loss" if isinstance(module, nn.modules.loss._Loss) else "module"
        shape = list(tensors[0].shape) if tensors else []
        path, repeats = name.rpartition(".")[0], _time_steps(module, output)
        layer = name if name in self.loops else slot
        self._add(Node(slot, kind, type_name(module), path, shape, layer, repeats), sources, hash((name, site)))
        places = {id(tensor): place for place, tensor in floating_outputs(output)}
        for tensor in tensors:
            self._mark([tensor], (slot, places.get(id(tensor), "")))
        self._last_call[name] = slot, site
        return slot

    def _hook_container(self, name: str, module: nn.Module) -> None:
        def before(_: nn.Module, __: Any) -> None:
            self._path.append(name)

        def after(_: nn.Module, __: Any, ___: Any) -> None:
            if len(self._path) > 1:
                self._path.pop()

        self._handles.append(module.register_forward_pre_hook(Local(before)))
        self._handles.append(module.register_forward_hook(Local(after), always_call=True))

    # -- optimizers ----------------------------------------------------------------------------------------------------

    def _suspend(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """An optimizer steps; but the closure that it calls is the training step itself."""
        self._suspended += 1
        wrapped = tuple(map(self._traced, args))
        return wrapped, {key: self._traced(value) for key, value in kwargs.items()}

    def _traced(self, closure: Any) -> Any:
        """A closure whose first evaluation is traced; an optimizer such as LBFGS evaluates it again and again."""
        if not callable(closure) or isinstance(closure, torch.optim.Optimizer):
            return closure
        evaluations = 0

        def traced() -> Any:
            nonlocal evaluations
            evaluations += 1
            is_first = evaluations == 1
            self._suspended -= is_first
            try:
                return closure()
            finally:
                self._suspended += is_first

        return traced

    def _resume(self, *_: Any) -> None:
        self._suspended = max(0, self._suspended - 1)


def _is_inside(name: str, leaves: Mapping[str, nn.Module]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in leaves for n in range(1, len(parts)))


def _time_steps(module: nn.Module, output: Any) -> int:
    """Number of time steps of a recurrent layer; 1 for any other module."""
    if not isinstance(module, nn.RNNBase) or not isinstance(output, tuple):
        return 1
    states = output[0]
    if isinstance(states, nn.utils.rnn.PackedSequence):
        return len(states.batch_sizes)
    return int(states.shape[1 if module.batch_first and states.dim() == 3 else 0])
