"""What TensorBoard imports at start: as little as possible, since an error here would stop TensorBoard itself."""

from typing import Any

from tensorboard.plugins import base_plugin


class DGMTrackerLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Loads the plugin; an error while loading is TensorBoard's to log, and only the tab is missing then."""

    def load(self, context: base_plugin.TBContext) -> Any:
        """Make the plugin."""
        from dgm_tb.plugin.plugin import DGMTrackerPlugin

        return DGMTrackerPlugin(context)
