"""What is known of the model: its graph as it has run so far, and which modules it is made of."""

from typing import Any

from torch import nn

from dgm_tb.callback.capture import Capture
from dgm_tb.callback.graph import build_graph
from dgm_tb.callback.slots import observable_modules
from dgm_tb.callback.trace import Trace
from dgm_tb.callback.tracer import Tracer
from dgm_tb.callback.weights import WeightWatch
from dgm_tb.graph import Graph

Spans = list[tuple[int, int]]


class ModelMap:
    """Traces the first step, and later ones in which something new is seen, and makes the graph of all of them.

    Args:
        root: The model.
        capture: The hooks on it.
        weights: Its weights.

    Attributes:
        graph: The newest one, or None before the first step has ended.
        trace: All that was traced so far.
        must_trace: Whether the next step is to be traced.
        tracer: Traces the current step, or None.
        modules: All modules of the model.
    """

    def __init__(self, root: nn.Module, capture: Capture, weights: WeightWatch) -> None:
        self._root, self._capture, self._weights = root, capture, weights
        self.graph: Graph | None = None
        self.trace = Trace()
        self.must_trace, self._has_traced = True, False
        self.tracer: Tracer | None = None
        self.modules = list(root.modules())

    def begin(self, batch: Any) -> None:
        """Trace the step that begins, if that is to be done."""
        if self.must_trace and self._capture.is_active:
            leaves, _ = self.leaves()
            self.tracer = Tracer(self._root, leaves, batch, self._capture.loops)
            self.tracer.__enter__()

    def leave(self) -> str:
        """Stop tracing; safe to call twice.

        Returns:
            Why the step could not be traced to its end, or "".
        """
        tracer, self.tracer = self.tracer, None
        if tracer is None:
            return ""
        tracer.__exit__(None, None, None)
        self.trace = tracer.trace.joined(self.trace)
        self._has_traced, self.must_trace = True, False
        return tracer.failure or ""

    def update(self) -> bool:
        """Make the graph anew if something new was seen.

        Returns:
            Whether there is a new graph.
        """
        has_grown = self._capture.has_grown
        if not (has_grown or self._has_traced):
            return False
        self._capture.has_grown = self._has_traced = False
        self.modules = list(self._root.modules())
        is_first = self.graph is None
        _, skipped = self.leaves()
        unrecorded = {**skipped, **self._capture.skipped}
        self.graph = build_graph(self._root, self.trace, self._capture.slots, self._weights.entries, unrecorded)
        has_unseen = any(slot.name not in self.trace.nodes for slot in self._capture.slots)
        self.must_trace = has_grown and not is_first and has_unseen
        return True

    def layout(self) -> dict[str, Spans]:
        """Quantity -> offset and number of neurons of each layer (or module with weights)."""
        spans = [(slot.offset, slot.neurons) for slot in self._capture.slots]
        rows = [(entry.offset, entry.neurons) for entry in self._weights.entries]
        return {"activation": spans, "gradient": spans, "weight": rows, "update": rows}

    def leaves(self) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """Every module that is one node of the DAG, and why some of them have no recorded neurons."""
        chosen, skipped = observable_modules(self._root)
        modules = dict(self._root.named_modules())
        losses = {n: m for n, m in modules.items() if isinstance(m, nn.modules.loss._Loss)}
        return {**chosen, **{name: modules[name] for name in skipped}, **losses}, skipped
