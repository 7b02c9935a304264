"""Lead from a failing training of a deep generative model to the snapshot, layer, neurons and example behind it.

``DGMTrackerCallback`` records a PyTorch Lightning training, ``record`` a loop in plain PyTorch; TensorBoard's tab
*DGMTracker*, ``dgm-tb diagnose`` and ``open_run`` read the recording. Importing this package loads neither torch nor
lightning.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DGMTrackerCallback", "open_run", "record"]

if TYPE_CHECKING:
    from dgm_tb.callback import DGMTrackerCallback
    from dgm_tb.callback.plain import record
    from dgm_tb.plugin.opening import open_run


def __getattr__(name: str) -> Any:
    if name == "DGMTrackerCallback":
        from dgm_tb.callback import DGMTrackerCallback

        return DGMTrackerCallback
    if name == "open_run":
        from dgm_tb.plugin.opening import open_run

        return open_run
    if name == "record":
        from dgm_tb.callback.plain import record

        return record
    raise AttributeError(f"module 'dgm_tb' has no attribute {name!r}; it has {', '.join(__all__)}")
