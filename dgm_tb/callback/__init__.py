"""Recording a training: hooks, reductions, replay and the writer. Needs torch and lightning."""

from dgm_tb.callback.callback import DGMTrackerCallback

__all__ = ["DGMTrackerCallback"]
