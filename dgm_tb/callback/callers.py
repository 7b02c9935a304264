"""Who is running: the model's own code, or the trainer around it; and at which place in the code."""

import sys
from functools import lru_cache
from types import FrameType

_TRAINERS = (
    *("lightning.pytorch.", "pytorch_lightning.", "lightning.fabric.", "lightning_fabric."),
    *("torch.optim", "torch.amp.grad_scaler", "torch.cuda.amp.grad_scaler", "torch.nn.utils.clip_grad"),
)
_LOOPS = ("lightning.pytorch.", "pytorch_lightning.")


def calling_site() -> tuple[int, bool]:
    """Where in the code the caller is.

    Returns:
        A number that is the same whenever the same line of the model runs, reached by the same lines that called it;
        and whether this line belongs to a trainer (Lightning, an optimizer, gradient scaling or clipping) instead.
    """
    frame: FrameType | None = sys._getframe(1)
    by_trainer: bool | None = None
    places: list[tuple[int, int]] = []
    while frame is not None:
        kind = _kind_of(frame.f_globals.get("__name__", ""))
        if by_trainer is None and kind in ("trainer", "loop", "model"):
            by_trainer = kind != "model"
        if kind == "loop":
            break  # which way the trainer took to the model (closures, accumulation) is all the same
        if kind != "own":
            places.append((id(frame.f_code), frame.f_lasti))
        frame = frame.f_back
    return hash(tuple(places)), bool(by_trainer)


@lru_cache(maxsize=4096)
def _kind_of(module: str) -> str:
    if module.startswith("dgm_tb.callback."):
        return "own"
    if ".demos." in module:
        return "model"
    if module.startswith(_LOOPS):
        return "loop"
    if module.startswith(_TRAINERS):
        return "trainer"
    return "torch" if module == "torch" or module.startswith("torch.") else "model"
