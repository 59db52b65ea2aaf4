"""Which part of every step is whose."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed

from .._errors import InvalidOptionError
from .checks import SUBJECT, whole_number


class Ranks(NamedTuple):
    """One of several processes that share an epoch."""

    rank: int
    world_size: int


ALONE = Ranks(0, 1)


def ranks_of(rank: Any, world_size: Any, *, is_own: bool = False) -> Ranks:
    """What the caller says, or torch.distributed where it is initialised, or one process alone.

    Args:
        rank: Which process this is; None with ``world_size``.
        world_size: Of how many.
        is_own: Whether the order is that of this process alone: a sampler knows of the others, or there are none.

    Raises:
        InvalidOptionError: They are no two whole numbers of which the first is smaller.
    """
    if rank is None and world_size is None:
        return ALONE if is_own else _found()
    for one, other in (("rank", "world_size"), ("world_size", "rank")):
        if {"rank": rank, "world_size": world_size}[other] is None:
            raise InvalidOptionError(SUBJECT, f"{one}= was given without {other}=", hint="give both or neither")
    world_size = whole_number("world_size", world_size, least=1)
    rank = whole_number("rank", rank, least=0)
    if rank >= world_size:
        fact = f"rank={rank} is none of world_size={world_size}"
        raise InvalidOptionError(SUBJECT, fact, expected=f"0 to {world_size - 1}", got=rank)
    if is_own and world_size > 1:
        hint = "DistributedSampler deals by itself, a list of numbers is dealt to the ranks: sampler=list(sampler)"
        fact = f"a sampler draws for one process, and world_size={world_size} was given"
        raise InvalidOptionError(SUBJECT, fact, hint=hint)
    return Ranks(rank, world_size)


def _found() -> Ranks:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())
