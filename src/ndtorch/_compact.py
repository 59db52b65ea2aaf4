"""Compact: the tensors of one tree without the memory that none of them uses, still sharing what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import _trace
from ._errors import NdtorchError, UnsupportedTypeError
from ._memory import byte_bounds, overlap
from ._plain import SUBJECT, dressed_like
from ._spec import describe

SMALL = 4096
"""Bytes: less waste than this, and than what is used, is not worth a copy."""

_COMPARE_AT_MOST = 64  # views whose places are compared byte by byte, each with each
_MAX_WORK = 100_000  # for a pair of them; what takes longer stays together


_Place = tuple[int, tuple[int, ...], tuple[int, ...], int]  # address, shape, strides in bytes, itemsize


class Compacted(NamedTuple):
    """What takes the place of tensors.

    Attributes:
        tensors: New tensor and reason, by the ``id`` of the tensor it replaces. Those left alone are not in it.
        nbytes_saved: Bytes of storage that `torch.save` writes less.
    """

    tensors: dict[int, tuple[torch.Tensor, str]]
    nbytes_saved: int


def compact(tensors: Iterable[tuple[str, torch.Tensor]]) -> Compacted:
    """Find tensors whose storages hold more than they use, and give them storages that hold just that.

    Tensors that overlap keep one storage, also where they came from NumPy arrays over one memory. Tensors that only
    lie in one storage get one each. One memory under two dtypes becomes two, since `torch.save` refuses it.

    Memory:
        New storages for what is compacted, on the same device; the given tensors stay as they are.

    Args:
        tensors: Paths and tensors, each tensor once.

    Raises:
        UnsupportedTypeError: A storage is smaller than its tensor.
        CopyRequiredError: A trace forbids copies.
    """
    views = [_view(path, tensor) for path, tensor in tensors if _has_plain_storage(tensor)]
    replaced: dict[int, tuple[torch.Tensor, str]] = {}
    for arena in _runs(views, lambda view: (view.start, view.end)):
        taken: set[int] = set()  # starts of storages: torch.save takes each under one dtype only
        for group in _of_one_dtype(arena):
            for view, tensor, why in _settle_group(group, taken):
                replaced[id(view.tensor)] = tensor, why
    before = sum({v.storage._cdata: v.nbytes for v in views}.values())
    final = [replaced[id(v.tensor)][0] if id(v.tensor) in replaced else v.tensor for v in views]
    after = sum({s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in final)}.values())
    return Compacted(replaced, max(before - after, 0))


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A tensor as a range of addresses inside a storage."""

    path: str
    tensor: torch.Tensor
    storage: torch.UntypedStorage
    start: int
    low: int
    high: int

    @property
    def nbytes(self) -> int:
        return int(self.storage.nbytes())

    @property
    def end(self) -> int:
        return self.start + self.nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(stride * self.tensor.itemsize for stride in self.tensor.stride())

    @property
    def place(self) -> _Place:
        """Which elements it is: equal for views of the same ones in the same order."""
        return self.low, tuple(self.tensor.shape), self.strides, self.tensor.itemsize

    @property
    def distinct_nbytes(self) -> int:
        """Bytes of its elements, each counted once along a broadcast axis."""
        nbytes = self.tensor.itemsize
        for n, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True):
            nbytes *= n if stride else min(n, 1)
        return nbytes

    @property
    def needed_nbytes(self) -> int:
        return min(self.distinct_nbytes, self.high - self.low)


def _has_plain_storage(tensor: torch.Tensor) -> bool:
    is_plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    if not is_plain or tensor.device.type not in ("cpu", "cuda"):
        return False
    return tensor.numel() > 0 or tensor.untyped_storage().nbytes() > 0


def _view(path: str, tensor: torch.Tensor) -> _View:
    storage = tensor.untyped_storage()
    start = storage.data_ptr()  # a lazily cloned tensor gets its own memory now, as torch.save would give it
    address = start + int(tensor.storage_offset()) * tensor.itemsize
    strides = tuple(stride * tensor.itemsize for stride in tensor.stride())
    low, high = byte_bounds(address, tuple(tensor.shape), strides, tensor.itemsize)
    if high > max(low, start + storage.nbytes()):
        fact = f"cannot save {describe(tensor)}: its storage is smaller than itself"
        raise UnsupportedTypeError(SUBJECT, fact, hint="tensor.untyped_storage().resize_() was called on it").at(path)
    return _View(path, tensor, storage, start, low, high)


def _runs(views: list[_View], bounds: Callable[[_View], tuple[int, int]]) -> Iterator[list[_View]]:
    """Views whose ranges overlap, directly or through others, each run in the order given."""
    order = {id(view): position for position, view in enumerate(views)}
    run: list[_View] = []
    device, end = "", 0
    for view in sorted(views, key=lambda v: (str(v.tensor.device), *bounds(v))):
        low, high = bounds(view)
        if run and (low >= end or str(view.tensor.device) != device):
            yield sorted(run, key=lambda v: order[id(v)])
            run, end = [], 0
        run.append(view)
        device, end = str(view.tensor.device), max(end, high)
    if run:
        yield sorted(run, key=lambda v: order[id(v)])


def _of_one_dtype(views: list[_View]) -> Iterable[list[_View]]:
    """Views that one storage can hold: of one dtype, and whole elements apart."""
    groups: dict[tuple[torch.dtype, int], list[_View]] = {}
    for view in views:
        groups.setdefault((view.tensor.dtype, view.start % view.tensor.itemsize), []).append(view)
    return groups.values()


def _settle_group(group: list[_View], taken: set[int]) -> Iterator[tuple[_View, torch.Tensor, str]]:
    first = group[0]
    if len({view.storage._cdata for view in group}) == 1 and first.start not in taken:
        distinct = {view.place: view for view in group}.values()
        used = min(_nbytes_covered(group), sum(view.needed_nbytes for view in distinct))
        if not _is_waste(first.nbytes, used):
            taken.add(first.start)
            return
    for part in _overlapping(group):
        yield from _settle(part, taken)


def _is_waste(held: int, used: int) -> bool:
    return held - used >= SMALL or held - used > used


def _nbytes_covered(views: list[_View]) -> int:
    covered = end = 0
    for view in sorted(views, key=lambda v: v.low):
        covered += max(view.high - max(view.low, end), 0)
        end = max(end, view.high)
    return covered


def _overlapping(views: list[_View]) -> Iterator[list[_View]]:
    """Views that have bytes in common, directly or through others: the columns of a matrix come apart."""
    for run in _runs(views, lambda view: (view.low, view.high)):
        places: dict[_Place, list[_View]] = {}
        for view in run:
            places.setdefault(view.place, []).append(view)
        if len(places) > _COMPARE_AT_MOST:
            yield run
            continue
        parts: list[list[_Place]] = []
        for place in places:
            joined = [p for p in parts if any(overlap(place, other, max_work=_MAX_WORK) for other in p)]
            parts = [p for p in parts if p not in joined] + [[other for p in joined for other in p] + [place]]
        yield from ([view for place in part for view in places[place]] for part in parts)


def _settle(part: list[_View], taken: set[int]) -> Iterator[tuple[_View, torch.Tensor, str]]:
    """Give views that belong together one storage: one they have if it is tight, else a new one."""
    low, high = min(view.low for view in part), max(view.high for view in part)
    is_single = len({view.place for view in part}) == 1
    needed = part[0].needed_nbytes if is_single else high - low
    for view in part:
        fits = view.start <= low and high <= view.end and view.start not in taken
        if fits and not _is_waste(view.nbytes, needed):
            taken.add(view.start)
            others = [other for other in part if other.storage._cdata != view.storage._cdata]
            yield from ((o, _rebased(o, view.storage, view.start), "one memory, saved once") for o in others)
            return
    why = _why(part, needed, taken)
    if is_single and part[0].distinct_nbytes <= high - low:
        dense = _copied(part[0], why, lambda: _dense(part[0].tensor))
        for view in part:
            yield view, _in_place_of(view.tensor, dense.as_strided(dense.shape, dense.stride())), why
        return
    raw = _copied(part[0], why, lambda: _extent(part, low, high))
    for view in part:
        yield view, _rebased(view, raw.untyped_storage(), low), why


def _why(part: list[_View], needed: int, taken: set[int]) -> str:
    held = max(view.nbytes for view in part)
    if not _is_waste(held, needed) and part[0].start in taken:
        return "torch.save refuses one memory under two dtypes"
    users = "it uses" if len(part) == 1 else f"{len(part)} tensors use"
    return f"its storage has {held:,} bytes, {users} {needed:,}"


def _copied(view: _View, why: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    try:
        made: torch.Tensor = _trace.observe(SUBJECT, str(describe(view.tensor)), why, make)
    except NdtorchError as error:
        raise error.at(view.path) from None
    return made


def _physical(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers that memory holds, not their lazy conjugate or negative."""
    plain = tensor.detach()
    plain = plain.conj() if plain.is_conj() else plain
    return plain._neg_view() if plain.is_neg() else plain


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """A copy without gaps, its dimensions in the same order in memory, broadcast ones still expanded."""
    plain = _physical(tensor)
    one = [min(n, 1) if stride == 0 else n for n, stride in zip(plain.shape, plain.stride(), strict=True)]
    return plain.as_strided(one, plain.stride()).clone().expand(plain.shape)


def _extent(part: list[_View], low: int, high: int) -> torch.Tensor:
    """The bytes from ``low`` to ``high``, each read from a storage that holds it."""
    raw = torch.empty(high - low, dtype=torch.uint8, device=part[0].tensor.device)
    end = low
    for view in sorted(part, key=lambda v: v.low):
        if view.high > end:
            held = raw.new_empty(0).set_(view.storage, 0, (view.nbytes,), (1,))
            raw[end - low : view.high - low] = held[end - view.start : view.high - view.start]
            end = view.high
    return raw


def _rebased(view: _View, storage: torch.UntypedStorage, start: int) -> torch.Tensor:
    """The same elements in another storage, whose first byte stands for address ``start``."""
    tensor = view.tensor
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    offset = (view.low - start) // tensor.itemsize
    return _in_place_of(tensor, empty.set_(storage, offset, tensor.shape, tensor.stride()))


def _in_place_of(tensor: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Give new numbers all else that the old tensor has: lazy bits, class, gradient flag, attributes."""
    plain = plain.conj() if tensor.is_conj() else plain
    plain = plain._neg_view() if tensor.is_neg() else plain
    return dressed_like(tensor, plain)
