"""Batches on their way to a device: gathered into staging memory, copied from there while the caller computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from .. import _bridge
from .._dtypes import DType
from .._structures import passes_through, take_apart
from .columns import AnyArray
from .ring import Event, Ring


class Lane(Protocol):
    """What a device offers: copies in an order of their own, beside what it computes."""

    device: torch.device

    def pin(self, nbytes: int) -> torch.Tensor:
        """Make bytes that the device can read on its own; they outlive the copies out of them."""
        ...

    def sending(self) -> AbstractContextManager[Any]:
        """Be on the lane, in this thread."""
        ...

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put the copy of a tensor on the lane."""
        ...

    def mark(self) -> Event:
        """Give the point behind all that is on the lane by now."""
        ...

    def wait(self, event: Event) -> None:
        """Let the current stream go on only behind a point of the lane."""
        ...

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Let the lane have the memory of its tensor again only when the current stream is done with it."""
        ...


class Sent(NamedTuple):
    """A batch under way: its leaves are whole behind the event."""

    leaves: list[Any]
    event: Event


class Staged:
    """Batches for a device with a lane.

    Memory:
        Every batch has memory of its own on the device. The staging memory is a ring, dropped with this object; a batch
        of which nobody wants to know any more gives its part back.
    """

    def __init__(self, lane: Lane, ring: Ring | None = None) -> None:
        self._lane = lane
        self._ring = Ring(lane.pin) if ring is None else ring

    def __reduce__(self) -> tuple[Any, ...]:  # another process has memory of its own
        return type(self), (self._lane,)

    def allocate(self, shape: tuple[int, ...], row: DType) -> tuple[torch.Tensor, AnyArray]:
        """Make the memory that a leaf is gathered into: that of the ring."""
        nbytes = math.prod(shape) * row.itemsize
        if not nbytes or row.numpy is None:
            return _bridge.fresh(shape, row)
        memory = self._ring.lend(nbytes)
        tensor = torch.from_numpy(memory).view(row.torch).view(shape)  # its storage keeps the loan
        return tensor, memory.view(row.numpy).reshape(shape)

    def send(self, leaves: list[Any]) -> Sent:
        """Put the copies of a batch on the lane. What is no plain tensor of the CPU waits until the batch is wanted."""
        addresses: list[int] = []

        def copy(leaf: Any) -> Any:
            if not _is_plain(leaf):
                return leaf
            addresses.append(leaf.untyped_storage().data_ptr())
            return self._lane.copy(leaf)

        with self._lane.sending():
            try:
                sent = [moved(leaf, copy) for leaf in leaves]
            finally:  # a copy may be on the lane where a later one could not be made
                event = self._lane.mark()
                for address in addresses:
                    self._ring.follow(address, event)
        return Sent(sent, event)

    def receive(self, sent: Sent) -> list[Any]:
        """Make the current stream wait for the copies, and hold their memory for it."""
        self._lane.wait(sent.event)

        def keep(leaf: Any) -> Any:
            is_here = isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and not leaf.is_nested
            if is_here and leaf.device == self._lane.device:
                return self._lane.keep(leaf)
            return leaf.to(self._lane.device)

        return [moved(leaf, keep) for leaf in sent.leaves]


def moved(leaf: Any, move: Callable[[Any], Any]) -> Any:
    """Move a leaf of a batch, or what is in it: tensors, and objects with a ``to`` such as packed sequences.

    Text, numbers, None and arrays stay as they are.
    """
    if moves(leaf):
        return move(leaf)
    if passes_through(leaf):
        return leaf
    structure = take_apart(leaf, "Loader", is_leaf=moves)
    if not any(map(moves, structure.leaves)):
        return leaf
    return structure.rebuild([move(each) if moves(each) else each for each in structure.leaves])


def moves(leaf: Any) -> bool:
    """Whether a leaf can be moved to a device."""
    return isinstance(leaf, torch.Tensor) or callable(getattr(leaf, "to", None))


def _is_plain(leaf: Any) -> bool:
    if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu":
        return False
    return leaf.layout is torch.strided and not leaf.is_nested and not leaf.requires_grad
