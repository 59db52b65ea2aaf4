"""Where batches are wanted: the memory they are gathered into, and the way from there to a device."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .. import _bridge, _native
from .._dtypes import DType
from .._options import resolve_device
from .columns import AnyArray
from .cuda import CudaLane
from .staging import Staged, moved


class Placement(Protocol):
    """The way of a batch to its device."""

    def allocate(self, shape: tuple[int, ...], row: DType) -> tuple[torch.Tensor, AnyArray]:
        """Make the memory that a leaf is gathered into."""
        ...

    def send(self, leaves: list[Any]) -> Any:
        """Start the way to the device; called by the thread that gathered the batch."""
        ...

    def receive(self, sent: Any) -> list[Any]:
        """Give leaves that are safe to use on the current stream; called by the thread that wants the batch."""
        ...


_IDLE_BYTES = 1 << 28


class InMemory:
    """Batches that stay on the CPU: each is memory of its own, which nobody else has.

    Attributes:
        blocks: Memory of batches that nobody holds any more, for those to come.
    """

    def __init__(self) -> None:
        self.blocks = _native.Blocks(_IDLE_BYTES)

    def allocate(self, shape: tuple[int, ...], row: DType) -> tuple[torch.Tensor, AnyArray]:
        """Make the memory of a leaf."""
        return _bridge.fresh(shape, row, self.blocks)

    def send(self, leaves: list[Any]) -> Any:
        """Do nothing: it is there already."""
        return leaves

    def receive(self, sent: Any) -> list[Any]:
        """Give it as it is."""
        leaves: list[Any] = sent
        return leaves


class Copied(InMemory):
    """Batches for any other device: copied when they are wanted, by the thread that wants them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def receive(self, sent: Any) -> list[Any]:
        """Copy it."""
        return [moved(leaf, lambda each: each.to(self._device)) for leaf in sent]


def placement_of(device: Any) -> Placement:
    """The way to a device; None and the CPU are here already.

    Raises:
        InvalidOptionError: There is no such device.
    """
    wanted = resolve_device("Loader", device)
    if wanted is None or torch.device(wanted).type == "cpu":
        return InMemory()
    here = torch.empty(0, device=wanted).device  # with its number, which another thread would count from its own device
    return Staged(CudaLane(here)) if here.type == "cuda" else Copied(here)
