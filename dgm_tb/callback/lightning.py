"""The callback for ``lightning``."""

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as error:
    raise ImportError(
        "this DGMTrackerCallback needs the package lightning. With pytorch_lightning: from "
        "dgm_tb.callback.pytorch_lightning import DGMTrackerCallback. In a loop of your own: dgm_tb.record"
    ) from error

from dgm_tb.callback.callback import TrackerHooks


class DGMTrackerCallback(TrackerHooks, Callback):  # noqa: D101
    __doc__ = TrackerHooks.__doc__
