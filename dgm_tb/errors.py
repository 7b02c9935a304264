"""Every error that dgm_tb raises on purpose: each says what was expected, what came, and the way out."""


class DgmError(Exception):
    """Base class of all errors of dgm_tb."""


class RecordError(DgmError, ValueError):
    """Bytes that are not a record of this schema, or not an intact one."""


class StaleIndexError(RecordError):
    """Bytes that the index tells of and that are gone: the file was replaced meanwhile. A refresh puts it right."""


class NoRecordingError(DgmError, FileNotFoundError):
    """A folder that holds no recording."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownNameError(DgmError, KeyError):
    """A run, layer, quantity, statistic, loss or snapshot that the recording does not hold."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnsupportedLayerError(DgmError, TypeError):
    """A layer type for which no contribution rule is known."""


class MissingPackageError(DgmError, ImportError):
    """An optional package that is needed here, and is not installed."""
