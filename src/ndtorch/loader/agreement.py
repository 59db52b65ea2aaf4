"""Whether the processes that share an epoch mean the same one: asked of the store of torch.distributed as loops begin.

No collective of the caller's is waited for or disturbed: processes meet at keys, a few bytes for each of them and loop.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch.distributed

from .._errors import InvalidOptionError, NdtorchError
from .checks import SUBJECT
from .ranks import Ranks

_SHORTEST, _LONGEST = 0.0005, 0.05  # seconds between two looks at the store

_loaders = count()


class Agreement:
    """What one loader and those of the other processes agree about, loop by loop.

    The first loader of each process that begins a loop belongs to the first of every other one, and so on: one that is
    made and never looped over counts nowhere.

    Args:
        ranks: Which process this is, as torch.distributed says.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._number: int | None = None
        self._loops = count()

    def check(self, facts: Mapping[str, Any]) -> None:
        """Wait until every process has come to its loop of the same number, and compare what they are about to do.

        Raises:
            InvalidOptionError: Two differ; the same on all, and names in what.
            NdtorchError: One does not come for as long as its process group would wait.
        """
        store = _store()
        if store is None:
            return
        if self._number is None:
            self._number = next(_loaders)
        key, own = f"ndtorch/loader/{self._number}/{next(self._loops)}", json.dumps(facts)
        digest = f"{zlib.crc32(own.encode()):08x}{len(own):x}"
        store.set(f"{key}/facts/{digest}", own)
        store.set(f"{key}/rank/{self._ranks.rank}", digest)
        agreeing = f"{key}/same/{digest}"
        store.add(agreeing, 1)
        if store.add(f"{key}/here", 1) == self._ranks.world_size:
            store.set(f"{key}/all", "")
        self._wait(store, key)
        if store.add(agreeing, 0) != self._ranks.world_size:
            raise self._difference(store, key)

    def _wait(self, store: Any, key: str) -> None:
        """Look again and again: what waits inside the store hears no Ctrl-C."""
        end, pause = time.monotonic() + store.timeout.total_seconds(), _SHORTEST
        while not store.check([f"{key}/all"]):
            if time.monotonic() > end:
                absent = [rank for rank in range(self._ranks.world_size) if not store.check([f"{key}/rank/{rank}"])]
                fact = (
                    f"rank {', '.join(map(str, absent[:8]))} has not begun the loop that rank {self._ranks.rank} begins"
                )
                hint = "begin it in every process, or make the loader with rank=0, world_size=1 for one alone"
                raise NdtorchError(SUBJECT, fact, hint=hint)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    def _difference(self, store: Any, key: str) -> InvalidOptionError:
        first, *others = (store.get(f"{key}/rank/{rank}").decode() for rank in range(self._ranks.world_size))
        rank = next(rank for rank, digest in enumerate(others, 1) if digest != first)
        wanted, got = (json.loads(store.get(f"{key}/facts/{digest}")) for digest in (first, others[rank - 1]))
        differing = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
        fact = f"rank {rank} differs from rank 0 in {', '.join(map(repr, differing))}"
        return InvalidOptionError(
            SUBJECT,
            fact,
            expected=", ".join(f"{name} {wanted.get(name)}" for name in differing),
            got=", ".join(f"{name} {got.get(name)}" for name in differing),
            hint="make the loader with the same arguments in every process, and give all the same state",
        )


def agreement_of(ranks: Ranks, *, is_found: bool) -> Agreement | None:
    """What there is to agree about: nothing where there is one process, or the caller says which this is."""
    return Agreement(ranks) if is_found and ranks.world_size > 1 else None


def _store() -> Any:
    """The store in which the processes met, for which torch has no public name; None where they have parted."""
    find = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    try:
        return None if find is None else find()
    except ValueError:
        return None
