"""What each rank has listed: ranks of one world have to plan the same work, or nobody ever finds all of it done.

A rank says in ``.ndtorch/plans`` what its plan is when it begins, and that it has finished at its end. Who finishes
and finds units missing compares; the one that writes the index removes the notes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from .._errors import FormatError, NdtorchError
from ..files.remote import shown
from .places import Place
from .units import Unit

FOLDER = ".ndtorch/plans"
_MOST = 100_000  # files that are named; of more there are the keys of the units

_Listed = list[Any]


class Plans:
    """The notes of the ranks of one world.

    Args:
        place: Where the outputs are.
        rank: Which rank this one is.
        world_size: How many there are.
        options: All that an output depends on beside its sources, as text.
        units: What it has planned, for all ranks together.
    """

    def __init__(self, place: Place, rank: int, world_size: int, options: str, units: Sequence[Unit]) -> None:
        self._place = place
        self._rank = rank
        self._names = [f"{each}-of-{world_size}" for each in range(world_size)]
        self._units = units
        self._options = options

    def begin(self) -> None:
        """Say what this rank has planned."""
        self._put(is_finished=False)

    def finish(self) -> None:
        """Say that this rank has done its part.

        Raises:
            FormatError: A rank that has finished, too, had listed other sources: what it has done is of no use.
        """
        self._put(is_finished=True)
        facts = self._facts()
        for rank, other in self._others():
            if other.get("finished") and other.get("key") != facts["key"]:
                which, world = f"rank {rank} of {len(self._names)}", shown(self._place.path)
                fact = f"{which} has listed other sources than rank {self._rank}: {_difference(other, facts)}"
                hint = "run all ranks again when no source is added or changed any more; what is done stays done"
                raise FormatError("convert", f"{world!r} gets no index: {fact}", hint=hint, rank=rank)

    def forget(self) -> None:
        """Remove the notes: all is done."""
        self._place.remove([f"{FOLDER}/{name}" for name in self._place.sizes(FOLDER)])

    def _put(self, *, is_finished: bool) -> None:
        content = zlib.compress(json.dumps(self._facts() | {"finished": is_finished}).encode(), 3)
        self._place.put(f"{FOLDER}/{self._names[self._rank]}", content)

    def _facts(self) -> dict[str, Any]:
        keys = [unit.key(self._options) for unit in self._units]
        count = sum(len(unit.files) for unit in self._units)
        files = itertools.chain.from_iterable(unit.files for unit in self._units)
        return {
            "key": hashlib.blake2s("".join(keys).encode(), digest_size=12).hexdigest(),
            "options": self._options,
            "count": count,
            "files": [[shown(each.path), each.nbytes, each.stamp] for each in files] if count <= _MOST else [],
            "units": [[key[:8], shown(unit.files[0].path)] for key, unit in zip(keys, self._units, strict=True)],
        }

    def _others(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for rank, name in enumerate(self._names):
            if rank == self._rank:
                continue
            try:
                facts = json.loads(zlib.decompress(self._place.read(f"{FOLDER}/{name}")))
            except (OSError, NdtorchError, ValueError, RecursionError, zlib.error):
                continue  # it has not begun, or nothing is known about it
            if isinstance(facts, dict):
                yield rank, facts


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """How two plans differ, in words."""
    counts = f"{theirs.get('count')} files there, {ours['count']} here"
    if theirs.get("options") != ours["options"]:
        return f"it had other options, {counts}"
    for name in "files", "units":
        pairs = itertools.zip_longest(_listed(theirs.get(name)), _listed(ours[name]))
        first = next(((there, here) for there, here in pairs if there != here), None)
        if first is not None and (theirs.get(name) and ours[name]):
            return f"{counts}, {_first(*first) if name == 'files' else _first_unit(*first)}"
    return counts


def _listed(found: Any) -> _Listed:
    return found if isinstance(found, list) else []


def _first(there: _Listed | None, here: _Listed | None) -> str:
    """The first file that differs."""
    if there is None or here is None:
        return f"the first that only one has is {(there or here or ['?'])[0]!r}"
    if there[0] != here[0]:
        return f"the first that differs is {there[0]!r} there and {here[0]!r} here"
    sizes = "" if there[1] == here[1] else f", of {there[1]} bytes there and {here[1]} here"
    return f"the first that has changed is {here[0]!r}{sizes}"


def _first_unit(there: _Listed | None, here: _Listed | None) -> str:
    """Where among very many files the first is that differs."""
    return f"the first that differs comes at or after {(here or there or ['', '?'])[1]!r}"
