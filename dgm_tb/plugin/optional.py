"""Packages that are used if they are installed."""

import importlib
from types import ModuleType

from dgm_tb.errors import MissingPackageError


def optional(name: str, purpose: str) -> ModuleType:
    """Import a package that dgm_tb does not depend on.

    Args:
        name: Full name of the module.
        purpose: What needs it; begins the sentence of the error.

    Raises:
        MissingPackageError: If it can't be imported; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(f"{purpose} needs the package {package}: pip install {package} ({error})") from error
