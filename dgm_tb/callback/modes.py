"""Entering a torch function mode where other ones, the user's, may be entered and left in the meantime."""

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


def put_below(mode: TorchFunctionMode) -> None:
    """Enter a mode below all others: whoever entered those leaves them in an order that does not know of this one."""
    _stack([mode, *_emptied_stack()])


def take_out(mode: TorchFunctionMode) -> None:
    """Leave a mode, wherever it lies among the others."""
    _stack([entered for entered in _emptied_stack() if entered is not mode])


def _emptied_stack() -> list[TorchFunctionMode]:
    """All modes that were entered, the outermost first; they are left now."""
    modes: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    for _ in modes:
        _pop_mode()  # type: ignore[no-untyped-call]
    return modes


def _stack(modes: list[TorchFunctionMode]) -> None:
    for mode in modes:
        _push_mode(mode)  # type: ignore[no-untyped-call]
