"""Act: carry out a plan. Nothing is decided here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from . import _bridge, _memory, _trace
from ._casting import Region, check_exact, copy_into
from ._dtypes import BY_NAME, DType, from_numpy_dtype
from ._errors import NdtorchError, ShapeMismatchError, UnsupportedDtypeError
from ._objects import array_of, numbers_of
from ._options import Options
from ._plan import Plan, is_protected, plan, plan_filling
from ._spec import describe, numbers_inside
from ._targets import result_type, target_dtype
from ._torch_dtypes import BY_TORCH
from .foreign.forms import Memory, Parts, Unread
from .foreign.sparse import build_matrix, build_tensor, rebuild

AnyArray = npt.NDArray[Any]


class Masked(NamedTuple):
    """A masked array as two tensors (or arrays); ``mask`` is True where a value is missing.

    >>> import numpy as np, ndtorch as nd
    >>> nd.to_torch(np.ma.masked_equal([1, 9, 3], 9), masked="split").mask
    tensor([False,  True, False])
    """

    data: Any
    mask: Any


def carry_out(planned: Plan, source: Any, path: str = "") -> Any:
    """Do what a plan says with the source it was made for, leaf by leaf, watched by the open traces."""
    if planned.error is not None:
        raise planned.error
    if planned.action == "parts":
        return _carry_out_parts(planned, source, path)
    if not _trace.watching():
        return _act(planned, source)
    _trace.check(planned)
    start = time.perf_counter()
    result = _act(planned, source)
    _trace.record(planned, path, _nbytes(result), time.perf_counter() - start)
    return result


def _act(planned: Plan, source: Any) -> Any:
    if planned.action == "fill":
        return _filled(planned, source)
    if planned.action in ("parse", "read") or isinstance(source, Unread):
        planned, source = parsed(planned, source)
        if planned.error is not None:
            raise planned.error
    if isinstance(source, Memory):
        source = source.array
    return _ACTS[planned.source.library, planned.options.to](planned, source)


def parsed(planned: Plan, source: Any) -> tuple[Plan, Any]:
    """Read Python objects into numbers, or a foreign object into memory, and plan what happens to those."""
    options = planned.options
    fresh: Any
    if isinstance(source, Unread):
        fresh = _read(source, planned)
        if fresh.dtype.kind == "O" and options.to == "torch":
            fresh = array_of(fresh, options)
    elif planned.source.form == "object":
        objects: Any = source.array if isinstance(source, Memory) else source
        fresh = array_of(objects, options)
    else:
        fresh = numbers_of(source, options)
    return plan(describe(fresh), options.for_fresh_memory()), fresh


def _read(source: Unread, planned: Plan) -> AnyArray:
    """Have a foreign object read, straight into memory of our own where its library can."""
    row = from_numpy_dtype(source.dtype)
    try:
        if source.pieces is not None and planned.action == "read":
            return _put_together(source.pieces(), source, planned)
        if source.fill is not None and row is not None and source.dtype.isnative:
            array = _bridge.fresh(source.shape, row)[1]
            source.fill(array)
        else:
            array = source.read()
    except (NdtorchError, MemoryError):
        raise
    except Exception as error:  # a library may raise anything: a broken PNG is a SyntaxError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fact = f"cannot read {planned.source}: {reason}"
        raise NdtorchError(planned.options.subject, fact, hint="look at the object itself") from error
    if array.dtype != source.dtype or array.shape != source.shape:
        raise ShapeMismatchError(
            planned.options.subject,
            f"{planned.source} has changed while it was read",
            expected=f"{source.dtype}{list(source.shape)}",
            got=f"{array.dtype}{list(array.shape)}",
        )
    return array if array.flags.writeable else array.copy()


def _put_together(pieces: Iterator[tuple[tuple[int, ...], AnyArray]], source: Unread, planned: Plan) -> AnyArray:
    """Write each piece to its place in memory of our own, cast on the way to what is wanted of it."""
    options, dtype = planned.options, source.dtype
    wanted = BY_NAME.get(planned.dtype) if planned.source.form in ("number", "foreign number") else None
    if wanted is not None and wanted.numpy is not None:
        dtype = wanted.numpy
    row = from_numpy_dtype(dtype)
    whole: AnyArray = np.empty(source.shape, dtype) if row is None else _bridge.fresh(source.shape, row)[1]
    while True:
        try:
            start, piece = next(pieces, (None, None))
        except NdtorchError as error:
            raise error.renamed(options.subject) from error.__cause__
        if start is None or piece is None:
            return whole
        slices: Any = tuple(slice(at, at + n) for at, n in zip(start, piece.shape, strict=True))
        region: AnyArray = whole[(*slices, ...)]
        copy_into(
            region, piece, casting=options.casting, subject=options.subject, what=planned.source, part=Region(start)
        )


def _nbytes(result: Any) -> int:
    if isinstance(result, torch.Tensor) and result.layout is not torch.strided:
        return 0
    return int(result.nbytes)


# --- parts


def parts_of(planned: Plan, source: Any) -> dict[str, Any]:
    """The parts of a structured, masked, nested or foreign source, by the same steps as the plan's leaves."""
    if isinstance(source, Parts):
        return dict(source.parts)
    if isinstance(source, Memory):
        source = source.array
    if isinstance(source, Unread):
        return _fields_read(planned, source)
    if planned.source.form == "struct":
        array = np.asarray(source)  # a scalar's text would come out without the spaces that its field holds
        return {f"[{name!r}]": array[name] for name in array.dtype.names or ()}
    if planned.source.form == "nested":
        return {f"[{i}]": part for i, part in enumerate(source.unbind())}
    return {step: getattr(source, step[1:]) for step in planned.leaves}


def _fields_read(planned: Plan, source: Unread) -> dict[str, Any]:
    """Fields of a structured array that is read once for all of them."""
    array = _read(source, planned)
    return {f"[{name!r}]": _field(source, array[name]) for name in array.dtype.names or ()}


def _field(source: Unread, field: AnyArray) -> Unread:
    return Unread(source.library, field.dtype, field.shape, source.reason, lambda: field)


def _carry_out_parts(planned: Plan, source: Any, path: str) -> Any:
    results = {}
    for step, part in parts_of(planned, source).items():
        if step not in planned.leaves:
            continue
        try:
            results[step] = carry_out(planned.leaves[step], part, path + step)
        except NdtorchError as error:
            raise error.at(step) from error.__cause__
    return _ASSEMBLE[planned.source.form](planned, source, results)


def _assemble_struct(planned: Plan, source: Any, results: dict[str, Any]) -> Any:
    assert planned.source.own_dtype is not None
    return dict(zip(planned.source.own_dtype.names or (), results.values(), strict=True))


def _assemble_nested(planned: Plan, source: Any, results: dict[str, Any]) -> Any:
    return list(results.values())


def _assemble_masked(planned: Plan, source: Any, results: dict[str, Any]) -> Any:
    data = results[".data"]
    if planned.options.to == "torch" and planned.options.masked == "error":
        return data  # nothing is missing
    if planned.options.to == "numpy" and isinstance(data, np.ndarray):
        return np.ma.MaskedArray(data, mask=results[".mask"], copy=False)
    return Masked(data, results[".mask"] if ".mask" in results else _all_false(data))


def _assemble_table(planned: Plan, source: Parts, results: dict[str, Any]) -> Any:
    steps = zip(source.keys, source.parts, strict=True)
    return {key: results.get(step) for key, step in steps}  # None stays None


def _assemble_ragged(planned: Plan, source: Parts, results: dict[str, Any]) -> Any:
    assert source.offsets is not None
    return _cut(results[".content"], source.offsets.tolist())


def _cut(content: Any, offsets: list[int]) -> list[Any]:
    """Slices of one content, which may itself be made of slices, columns or a mask."""
    if isinstance(content, dict):
        columns = {name: _cut(part, offsets) for name, part in content.items()}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(offsets) - 1)]
    if isinstance(content, Masked):
        return [Masked(*pair) for pair in zip(_cut(content.data, offsets), _cut(content.mask, offsets), strict=True)]
    lengths = [end - start for start, end in pairwise(offsets)]
    if (
        isinstance(content, torch.Tensor)
        and offsets[0] == 0
        and offsets[-1] == len(content)
        and min(lengths, default=0) >= 0
    ):
        return list(content.unsafe_split_with_sizes(lengths))  # three times as fast as one slice after the other
    return [content[start:end] for start, end in pairwise(offsets)]


def _assemble_sparse(planned: Plan, source: Parts, results: dict[str, Any]) -> Any:
    if planned.options.to == "torch":
        return build_tensor(source.layout, source.shape, results)
    if source.library == "scipy":
        return source.original if planned.shares else rebuild(source.original, results)
    return build_matrix(source.layout, source.shape, results)


_ASSEMBLE: dict[str, Callable[[Plan, Any, dict[str, Any]], Any]] = {
    "struct": _assemble_struct,
    "nested": _assemble_nested,
    "masked": _assemble_masked,
    "table": _assemble_table,
    "ragged": _assemble_ragged,
    "sparse": _assemble_sparse,
}


def _filled(planned: Plan, source: Any) -> torch.Tensor:
    """The values of a masked array in memory of their own, NaN or NaT where one is missing."""
    spec, options = planned.source, planned.options
    parts = source.parts if isinstance(source, Parts) else {".data": source.data, ".mask": source.mask}
    data = parts[".data"]
    if ".mask" not in spec.parts:
        return _converted(plan_filling(spec.parts[".data"], options), data)
    if options.casting == "exact":
        data = _without_missing(data, parts[".mask"])
    tensor = _converted(plan_filling(describe(data), options), data)
    missing = _act(plan(spec.parts[".mask"], Options(to="torch", readonly="share")), parts[".mask"])
    _fill_missing(tensor, missing.to(tensor.device), is_time=spec.parts[".data"].form == "time")
    return tensor


def _converted(planned: Plan, source: Any) -> torch.Tensor:
    result: torch.Tensor = _act(planned, source)
    return result


def _without_missing(data: Any, mask: Any) -> AnyArray:
    """A copy with 0 where a value is missing: what stands there has no meaning and cannot be lost by a cast."""
    known: AnyArray = _act(plan(describe(data), Options(to="numpy", copy=True)), data)
    known[_act(plan(describe(mask), Options(to="numpy")), mask)] = np.zeros((), known.dtype)
    return known


def _fill_missing(tensor: torch.Tensor, missing: torch.Tensor, *, is_time: bool) -> None:
    if tensor.dtype.itemsize > 1:
        tensor[missing] = _NAT if is_time else float("nan")
        return
    dtype = BY_TORCH[tensor.dtype].numpy  # torch fills no float8
    tensor.view(torch.uint8)[missing] = int(np.array(float("nan"), dtype).view(np.uint8))


_NAT = -(2**63)


def _all_false(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _all_false(part) for name, part in data.items()}
    return torch.zeros(data.shape, dtype=torch.bool, device=data.device)


# --- to torch


def _array_to_torch(planned: Plan, source: AnyArray) -> torch.Tensor:
    spec = planned.source
    view = numbers_inside(np.asarray(source))
    device = planned.options.device or "cpu"
    if spec.size == 0:
        return torch.empty(view.shape, dtype=BY_NAME[planned.dtype].torch, device=device)
    if planned.action == "map":
        assert spec.mapping is not None
        private = _memory.map_privately(view, spec.mapping)
        # Replaced since it was described: the array itself is then all that is left of the file.
        return _bridge.made_known(_bridge.share(view.copy() if private is None else private))
    if planned.action == "copy distinct":
        one = tuple(slice(0, 1) if i in spec.broadcast_axes else slice(None) for i in range(view.ndim))
        return _bridge.made_known(_fresh_tensor(planned, view[one])).to(device).expand(view.shape)
    tensor = _fresh_tensor(planned, view) if planned.action == "copy" else _bridge.share(view)
    return _bridge.made_known(tensor).to(device)


def _fresh_tensor(planned: Plan, view: AnyArray) -> torch.Tensor:
    """One pass into new row-major memory of the target's dtype."""
    row = BY_NAME[planned.dtype]
    tensor, fresh = _bridge.fresh(view.shape, row)
    options = planned.options
    copy_into(fresh, view, casting=options.casting, subject=options.subject, what=planned.source)
    return tensor


def _fresh_copy(planned: Plan, view: AnyArray) -> AnyArray:
    """The same as an array, for dtypes that torch does not have as well."""
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    dtype = target.numpy if isinstance(target, DType) else target
    if dtype is None or dtype.kind in "MmSU":
        dtype = view.dtype.newbyteorder("=")
    fresh = np.empty(view.shape, dtype)
    copy_into(fresh, view, casting=options.casting, subject=options.subject, what=spec)
    return fresh


def _tensor_to_torch(planned: Plan, source: torch.Tensor) -> torch.Tensor:
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    dtype = target.torch if isinstance(target, DType) else source.dtype
    device = options.device or source.device
    if planned.action == "share" and dtype == source.dtype:
        return source.to(device)  # the tensor itself, unless it is empty and elsewhere
    drops_imaginary = source.is_complex() and not dtype.is_complex and dtype != torch.bool
    real = source.real if drops_imaginary else source
    try:
        result = real.to(dtype=dtype, copy=True)
    except (RuntimeError, TypeError, AssertionError) as error:
        fact = f"torch cannot copy {spec} as {dtype}: {str(error).splitlines()[0]}"
        raise UnsupportedDtypeError(options.subject, fact, hint="convert a plain tensor of its values") from None
    if options.casting == "exact" and dtype != source.dtype and not source.is_meta:
        check_exact(_host_array(source), _host_array(result), subject=options.subject, what=spec)
    return result.to(device)


# --- to NumPy


def _tensor_to_numpy(planned: Plan, source: torch.Tensor) -> AnyArray:
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    if spec.size == 0:
        dtype, shape = result_type(spec, options)
        return np.empty(shape, dtype.numpy if isinstance(dtype, DType) else dtype)
    if planned.action == "share":
        _wait_for_device(source)
        array = _bridge.alias(source, writable=not (is_protected(spec) or spec.readonly))
    else:
        array = _host_array(source)
        if array.__array_interface__["data"][0] == spec.address or (target is not None and array.dtype != target):
            array = _fresh_copy(planned, array)
    return _renamed(array, target)


def _host_array(tensor: torch.Tensor) -> AnyArray:
    """The values of a tensor on any device as an array; its own memory where that holds them already."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.complex32:
        plain = plain.to(torch.complex64)
    if plain.device.type == "cpu":
        _wait_for_device(plain)
    return _bridge.alias(plain.cpu(), writable=True)


def _wait_for_device(tensor: torch.Tensor) -> None:
    """Let a ``non_blocking`` copy into this pinned tensor finish before anybody reads it (pytorch#137951)."""
    if torch.cuda.is_initialized() and tensor.is_pinned():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _renamed(array: AnyArray, target: Any) -> AnyArray:
    """View integers as the time or text that was asked for."""
    if not isinstance(target, np.dtype) or target.kind not in "MmSU":
        return array
    if target.kind in "Mm":
        named = array.view(target.newbyteorder("="))
    else:
        named = array.view(np.dtype((target.kind, array.shape[-1])))[..., 0]
    return named if target.isnative else named.astype(named.dtype.newbyteorder())


def _array_to_numpy(planned: Plan, source: AnyArray) -> AnyArray:
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    if planned.action == "share" and (target is None or target == source.dtype):
        return source
    if not isinstance(target, np.dtype) or target == source.dtype:
        return np.array(source) if spec.is_scalar else source.copy()  # np.array would share a mask
    if spec.form not in ("number", "foreign number"):
        return source.astype(target)
    fresh = np.empty(source.shape, target)
    copy_into(fresh, np.asarray(source), casting=options.casting, subject=options.subject, what=spec)
    return fresh


_ACTS: dict[tuple[str, str], Callable[[Plan, Any], Any]] = {
    ("numpy", "torch"): _array_to_torch,
    ("torch", "torch"): _tensor_to_torch,
    ("torch", "numpy"): _tensor_to_numpy,
    ("numpy", "numpy"): _array_to_numpy,
}
