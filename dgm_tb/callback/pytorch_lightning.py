"""The callback for ``pytorch_lightning``, the same package under its older name; ``lightning`` is not needed."""

from pytorch_lightning import Callback

from dgm_tb.callback.callback import TrackerHooks


class DGMTrackerCallback(TrackerHooks, Callback):  # noqa: D101
    __doc__ = TrackerHooks.__doc__
