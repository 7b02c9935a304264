"""Recording a training: hooks, reductions, replay and the writer. Needs torch; each callback needs its Lightning."""

from typing import TYPE_CHECKING, Any

__all__ = ["DGMTrackerCallback"]

if TYPE_CHECKING:
    from dgm_tb.callback.lightning import DGMTrackerCallback


def __getattr__(name: str) -> Any:
    if name == "DGMTrackerCallback":
        from dgm_tb.callback.lightning import DGMTrackerCallback

        return DGMTrackerCallback
    raise AttributeError(f"module 'dgm_tb.callback' has no attribute {name!r}")
