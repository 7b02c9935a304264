"""Warnings that can't hurt: a user may have turned warnings into errors, and a training must not die of ours."""

import logging
import warnings

_LOG = logging.getLogger("dgm_tb")


def warn(text: str) -> None:
    """Warn the user; where warnings are errors, log instead."""
    try:
        warnings.warn(f"dgm_tb: {text}", stacklevel=2)
    except Warning:
        _LOG.warning(text)
