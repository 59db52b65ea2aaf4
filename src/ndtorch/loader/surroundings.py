"""What torch keeps for each thread: for whoever makes a batch as a thread begins with it."""

from __future__ import annotations

from contextlib import ExitStack

import torch

_AUTOCAST = ("cpu", "cuda", "xpu", "mps")


def has_modes() -> bool:
    """Whether torch may do something else here than in a thread that has just begun."""
    return (
        not torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or any(map(torch.is_autocast_enabled, _AUTOCAST))
        or torch.get_default_device().type != "cpu"
    )


def without_modes() -> ExitStack:
    """Have torch do what it does in a thread that has just begun.

    ``no_grad``, ``inference_mode``, ``autocast`` and the default device are those of the thread of the loop. The
    threads that gather ahead know nothing of them: it would be chance which batches are made under them.
    """
    stack = ExitStack()
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    for device in _AUTOCAST:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    return stack
