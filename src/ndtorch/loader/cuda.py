"""The lane to a CUDA device: pinned memory and a stream beside the one that computes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from .ring import Event


class CudaLane:
    """A stream for copies.

    A thread begins with the first device and its default stream, so everything here says which device it means.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device,)

    def pin(self, nbytes: int) -> torch.Tensor:
        """Make pinned bytes. torch's allocator has them again, and gives them to others behind the copies only."""
        with torch.cuda.device(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def sending(self) -> AbstractContextManager[Any]:
        """Be on the stream, in this thread."""
        return torch.cuda.stream(self._stream)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put a copy on the stream; strides stay."""
        return tensor.to(self.device, non_blocking=True)

    def mark(self) -> Event:
        """Give an event behind all copies; who waits for it sleeps."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def wait(self, event: Any) -> None:
        """Have the current stream wait."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tell the allocator which stream uses memory that was made on this one."""
        tensor.record_stream(torch.cuda.current_stream(self.device))
        return tensor
