"""The models of a plain loop: one or several, and what is inside the wrappers that it calls them through."""

from collections.abc import Mapping
from typing import Any

from torch import nn


class Models(nn.Module):
    """Several models as one."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, model in models.items():
            self.add_module(name, model)


def named_models(model: Any) -> dict[str, nn.Module]:
    """The models by name; the name of a single one is ``""``.

    Raises:
        TypeError: If something is no module.
        ValueError: If there is none, or a name can't be that of a module.
    """
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    if not models:
        raise ValueError("model is empty; pass at least one torch.nn.Module")
    for name, part in models.items():
        if not isinstance(part, nn.Module):
            kind = type(part).__name__
            raise TypeError(f"model is a torch.nn.Module, or a mapping of several by name; got {kind}")
        is_name = isinstance(name, str) and name.isidentifier() and not hasattr(nn.Module, name)
        if isinstance(model, Mapping) and (not is_name or name == "training"):
            raise ValueError(f"a model's name is an identifier, as 'generator'; got {name!r}")
    return models


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own model inside the wrappers of ``torch.compile``, ``DistributedDataParallel`` and Fabric."""
    module = bare(module)
    return unwrapped(module.module) if type(module).__name__ == "_FabricModule" else module  # type: ignore[arg-type]


def bare(module: nn.Module) -> nn.Module:
    """The module without what compiles it or joins it with other processes; Fabric's precision stays."""
    while True:
        if "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"] or module
        elif isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        else:
            return module
