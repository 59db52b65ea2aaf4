"""Stack: many arrays into one tensor, in one pass, whatever their layouts and dtypes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.graph import increment_version

from . import _bridge, _memory, _native, _trace
from ._casting import why_not_cast
from ._convert import to_numpy, to_torch
from ._dtypes import TABLE, DType, from_numpy_dtype
from ._errors import (
    InvalidOptionError,
    LossyCastError,
    NdtorchError,
    ShapeMismatchError,
    UnsupportedDtypeError,
    UnsupportedTypeError,
)
from ._file_rows import rows_in_files, stack_rows
from ._options import resolve_device
from ._spec import MAX_DIMS, describe
from ._torch_dtypes import resolve
from .foreign import Memory, library_of, recognise

AnyArray = npt.NDArray[Any]

_LOOK_AT = 1 << 20  # items of an ``out`` of unusual strides whose places are compared one by one


def stack(
    arrays: Iterable[Any],
    /,
    *,
    dim: int = 0,
    dtype: Any = None,
    device: Any = None,
    pad_value: Any = None,
    out: torch.Tensor | None = None,
) -> Any:
    """Stack equally shaped arrays into one new tensor, in one pass.

    Each array may have a layout and a dtype of its own: any strides, byte order and alignment.

    Memory:
        Always new memory, written once; ``out=`` writes into yours instead. Nothing is written before all has been
        checked. Gradients are not followed.

    Args:
        arrays: n arrays, tensors, numbers or nested lists of numbers, all of one shape S. Times of one unit count as
            their integers, complex32 as complex64.
        dim: Where the new dimension of size n goes in the result, from -(ndim + 1) to ndim.
        dtype: Dtype of the result, under the ``same_kind`` rules of `to_torch`. None takes the smallest dtype that
            NumPy calls safe for each of theirs, whatever their order: int64 and float32 become float64.
        device: Where the result lies; None is the CPU, or where ``out`` is.
        pad_value: Lets the arrays differ in size along their first axis, and fills the rest of the shorter ones.
        out: A tensor of the result's shape and dtype to write into. Its items may lie anywhere, but not on each other.

    Returns:
        The tensor; with ``pad_value=`` the tensor and the lengths, an int64 tensor of shape (n,).

    Raises:
        ShapeMismatchError: Names the first array whose shape differs, in ``index``, ``expected`` and ``got``; or
            ``out`` has another shape than the result.
        LossyCastError: ``dtype=`` or ``pad_value=`` would lose values.
        InvalidOptionError: ``dim`` is no place, or ``out`` is no memory for the result.
        UnsupportedTypeError: One of them is no array of numbers; its ``path`` says which.

    >>> import numpy as np, ndtorch as nd
    >>> nd.stack([np.zeros(3), np.ones(3)]).shape
    torch.Size([2, 3])
    >>> nd.stack([np.array([1, 2, 3]), np.array([4])], pad_value=0)
    (tensor([[1, 2, 3],
            [4, 0, 0]]), tensor([3, 1]))
    """
    if _trace.watching():
        arrays = _listed(arrays)
        return _trace.observe(
            "stack",
            f"{len(arrays)} arrays",
            "one tensor of many arrays is new memory",
            lambda: stack_into(_bridge.fresh, arrays, dim, dtype, device, pad_value, out),
        )
    if dim == 0 and dtype is device is pad_value is out is None:
        result = _native.stack_plain(arrays)
        if result is not None:
            return result
    return stack_into(_bridge.fresh, arrays, dim, dtype, device, pad_value, out)


def stack_into(
    allocate: Callable[[tuple[int, ...], DType], tuple[torch.Tensor, AnyArray]],
    arrays: Iterable[Any],
    dim: int = 0,
    dtype: Any = None,
    device: Any = None,
    pad_value: Any = None,
    out: torch.Tensor | None = None,
) -> Any:
    """Do what `stack` does, with the result's memory from ``allocate``: a tensor and the array over it."""
    wanted = None if dtype is None else resolve(dtype, subject="stack")
    place = resolve_device("stack", device)
    if dim == 0 and wanted is pad_value is out is None:
        rows = rows_in_files(arrays)
        result = None if rows is None else stack_rows(rows, allocate)
        if result is not None:
            return finish(result, None, place)
    sources = _listed(arrays)
    plain, odd, kinds = _native.survey(sources)
    if not plain:
        sources = as_arrays(sources, wanted)
        _, odd, kinds = _native.survey(sources)
    shape, lengths = _shape_of(sources, odd, pad_value)
    row = promoted(kinds) if wanted is None else _checked_row(wanted, sources)
    padding = None if pad_value is None else padding_of(pad_value, row)
    axis = _axis(dim, len(shape) + 1)
    whole = (*shape[:axis], len(sources), *shape[axis:])
    if len(whole) > MAX_DIMS:
        fact = f"the result would have {len(whole)} dimensions"
        raise ShapeMismatchError("stack", fact, expected=f"at most {MAX_DIMS}", got=len(whole))
    if out is not None:
        check_out("stack", out, whole, row, place, sources)
    if out is None or out.device.type != "cpu":
        result, target = allocate(whole, row)
    else:
        result, target = out, _bridge.alias(out, writable=True)
    try:
        if target.size:
            _native.stack(np.moveaxis(target, axis, 0) if axis else target, sources, padding)
    finally:  # Ctrl-C may leave part of it
        result = finish(result, out, place)
    return result if lengths is None else (result, lengths)


def finish(result: torch.Tensor, out: torch.Tensor | None, device: str | None) -> torch.Tensor:
    """Move a result to where it was wanted: its device, or ``out``, which may be the result itself."""
    if out is None:
        return result if device is None else result.to(device)
    if result is not out:
        return out.copy_(result)
    increment_version(out)  # the kernels wrote past autograd, which has to know
    return out


# --- the arrays


def _listed(arrays: Any) -> tuple[Any, ...]:
    if library_of(arrays) is not None:  # one call is much faster than one for each element
        arrays = to_torch(arrays, readonly="share")
    if isinstance(arrays, dict):
        fact = "cannot stack a table or a dict"
        hint = "stack(list(tensors.values()), dim=1) puts its columns side by side"
        raise UnsupportedTypeError("stack", fact, expected="a sequence of arrays", got=type(arrays).__name__, hint=hint)
    if isinstance(arrays, torch.Tensor):
        arrays = arrays.unbind() if arrays.ndim else arrays
    try:
        sources = tuple(arrays)
    except TypeError:
        raise UnsupportedTypeError(
            "stack", f"cannot stack {describe(arrays)}", expected="a sequence of arrays", got=type(arrays).__name__
        ) from None
    if not sources:
        raise ShapeMismatchError("stack", "there are no arrays", expected="at least one", got="none")
    return sources


def as_arrays(sources: tuple[Any, ...], wanted: DType | None) -> tuple[AnyArray, ...]:
    """Every source as an exact NumPy array of a dtype of the table, sharing memory where it can."""
    sources = tuple(map(_in_memory, sources))
    times = {source.dtype.newbyteorder("=") for source in sources if _is_time(source)}
    for i, source in enumerate(sources):
        if times and (len(times) > 1 or not _is_time(source)):
            fact = f"cannot stack {describe(source)} with time of another unit or none"
            error = UnsupportedDtypeError("stack", fact, hint="array.astype('datetime64[ns]') gives all one unit")
            raise error.at(f"[{i}]")
    results = []
    for i, source in enumerate(sources):
        try:
            results.append(_as_array(source, wanted))
        except NdtorchError as error:
            raise error.renamed("stack").at(f"[{i}]") from None
    return tuple(results)


def _in_memory(source: Any) -> Any:
    """The array that an object of another library is a guise of, so that its dtype is seen."""
    taken = recognise(source)
    return taken.array if isinstance(taken, Memory) else source


def _is_time(source: Any) -> bool:
    return isinstance(source, np.ndarray | np.generic) and source.dtype.kind in "Mm"


def _as_array(source: Any, wanted: DType | None) -> AnyArray:
    if isinstance(source, np.ndarray | np.generic) and not isinstance(source, np.ma.MaskedArray):
        return _numbers_of(readable(np.asarray(source), "stack"), wanted)
    if not isinstance(source, torch.Tensor):
        try:
            source = to_torch(source, readonly="share")
        except NdtorchError as error:
            raise error.renamed("stack", hint=_hint_of_stack(error.hint)) from None
    if not isinstance(source, torch.Tensor):
        fact = f"cannot stack a {type(source).__name__}"
        raise UnsupportedTypeError("stack", fact, hint="ndtorch.collate stacks structures leaf by leaf")
    if source.layout is not torch.strided:
        fact = f"cannot stack {describe(source)}: its layout is {str(source.layout).removeprefix('torch.')}"
        hint = "scipy.sparse.vstack(matrices), torch.stack for COO tensors, or tensor.to_dense()"
        raise UnsupportedTypeError("stack", fact, hint=hint)
    return array_of(source, "stack")


def _hint_of_stack(hint: str | None) -> str | None:
    """A hint for `to_torch` that helps here: stack itself knows nothing of masks."""
    is_masked = hint is not None and "masked=" in hint
    return "to_torch(array, masked='nan') makes missing values NaN, in a tensor to stack" if is_masked else None


def array_of(tensor: torch.Tensor, subject: str) -> AnyArray:
    """The array over a tensor whose memory is all there."""
    array = np.asarray(to_numpy(tensor))
    if tensor.layout is torch.strided and tensor.device.type == "cpu" and not _is_allocated(tensor):
        fact = f"cannot read {describe(tensor)}: its storage is smaller than itself"
        raise UnsupportedTypeError(subject, fact, hint="tensor.untyped_storage().resize_() was called on it")
    return array


def readable(array: AnyArray, subject: str) -> AnyArray:
    """The same array, unless reading it would kill the process: its file has been truncated."""
    mapping = None if array.base is None else _memory.file_behind(array, array)
    if mapping is not None and mapping.truncated:
        raise shrunk(array, mapping, subject)
    return array


def shrunk(array: AnyArray, mapping: _memory.FileMapping, subject: str) -> NdtorchError:
    """Make the error for an array whose file has been truncated."""
    fact = f"cannot read {describe(array)}: its file {mapping.path!r} has become shorter than the array"
    return NdtorchError(subject, fact, hint="open the file anew")


def _numbers_of(array: AnyArray, wanted: DType | None) -> AnyArray:
    if from_numpy_dtype(array.dtype) is not None:
        return array
    if array.dtype.kind in "Mm":
        if wanted is not None and wanted.name != "int64":
            fact = f"dtype={wanted.name} cannot apply to {describe(array)}: it holds time, not numbers"
            raise UnsupportedDtypeError("stack", fact, hint="leave dtype= away")
        return array.view(array.dtype.str[0] + "i8")
    if array.dtype.kind in "SUV":
        fact = f"cannot stack {describe(array)}: it holds no numbers"
        raise UnsupportedDtypeError("stack", fact, hint="array.tolist() gives text that stays as it is")
    return np.asarray(to_numpy(to_torch(array, dtype=None if wanted is None else wanted.torch)))


def _shape_of(sources: tuple[AnyArray, ...], odd: int, pad_value: Any) -> tuple[tuple[int, ...], torch.Tensor | None]:
    """The one shape, or that of the longest, and the lengths where there is something to pad."""
    first = sources[0].shape
    if pad_value is None:
        if odd < len(sources):
            got = sources[odd].shape
            can_pad = len(first) == len(got) > 0 and first[1:] == got[1:]
            hint = "pad_value=0 fills up" if can_pad else "pad_value= fills up the first axis only: give all one shape"
            raise _odd_shape(odd, first, got, hint)
        return first, None
    for i, source in enumerate(sources):
        if source.ndim == 0 or source.shape[1:] != first[1:]:
            hint = "pad_value= fills up the first axis only" if source.ndim else "pad_value= needs an axis to fill up"
            raise _odd_shape(i, first, source.shape, hint)
    lengths = [len(source) for source in sources]
    return (max(lengths), *first[1:]), torch.tensor(lengths, dtype=torch.int64, device="cpu")


def _odd_shape(index: int, expected: tuple[int, ...], got: tuple[int, ...], hint: str) -> ShapeMismatchError:
    fact = f"array {index} has another shape than array 0" if got != expected else f"array {index} has no first axis"
    return ShapeMismatchError("stack", fact, expected=expected, got=got, hint=hint, index=index)


# --- the dtype


def _checked_row(wanted: DType, sources: tuple[AnyArray, ...]) -> DType:
    if wanted.numpy is None:
        fact = f"dtype={wanted.name} has no NumPy counterpart to fill it from"
        raise UnsupportedDtypeError("stack", fact, hint="dtype='complex64' holds it exactly")
    for dtype in dict.fromkeys(source.dtype for source in sources):
        why = why_not_cast(dtype, wanted.numpy, "same_kind")
        if why:
            i, source = next((i, source) for i, source in enumerate(sources) if source.dtype == dtype)
            fact = f"cannot cast {describe(source)} to {wanted.name}: {why}"
            hint = f"array.astype('{wanted.name}') insists"
            raise LossyCastError("stack", fact, hint=hint, dtype=wanted.name).at(f"[{i}]")
    return wanted


@lru_cache(maxsize=256)
def promoted(kinds: int) -> DType:
    """The smallest row that every dtype of a set casts to safely; the order of the table settles ties.

    No float8 holds another dtype, though ml_dtypes calls such casts safe.
    """
    rows = [row for row in TABLE if row.numpy is not None and kinds >> row.scalar_type & 1]
    if len(rows) == 1:
        return rows[0]
    wide = [row for row in TABLE if row.numpy is not None and not row.name.startswith("float8")]
    holding = (row for row in wide if all(_holds(row, other) for other in rows))
    return min(holding, key=lambda row: row.itemsize)


def _holds(row: DType, other: DType) -> bool:
    assert row.numpy is not None
    assert other.numpy is not None
    return row is other or np.can_cast(other.numpy, row.numpy, "safe")


def padding_of(value: Any, row: DType) -> AnyArray:
    """The value that fills up, as an array of one item. Floats may round to another float, and that is all."""
    given = np.asarray(value)
    known = from_numpy_dtype(given.dtype)
    item = np.empty((), row.numpy)
    is_kept = False
    if given.shape == () and known is not None and (known.kind != "complex" or row.kind == "complex"):
        rounds = row.kind in ("float", "complex") and known.kind in ("float", "complex")
        with np.errstate(all="ignore"):
            is_kept = _native.copy(item, given, not rounds)
            is_kept = is_kept and (not rounds or bool(np.isnan(given)) or bool(np.isinf(given) == np.isinf(item)))
            is_kept = is_kept and (bool(np.isnan(given)) or not bool(np.isnan(item)))
    if not is_kept:
        fact = f"pad_value={value!r} is no value of {row.name}"
        hint = "a number, or dtype= with a dtype that holds it"
        raise LossyCastError("stack", fact, hint=hint, value=value, dtype=row.name)
    return item


# --- the result


def _axis(dim: Any, ndim: int) -> int:
    try:
        axis = operator.index(dim)
    except TypeError:
        axis = ndim
    if not -ndim <= axis < ndim:
        raise InvalidOptionError(
            "stack", f"dim={dim!r} is no place for the new dimension", expected=f"{-ndim} to {ndim - 1}", got=dim
        )
    return axis % ndim


def check_out(
    subject: str, out: Any, shape: tuple[int, ...], row: DType, device: str | None, sources: Sequence[AnyArray]
) -> None:
    """Raise unless a result can be written into ``out`` and nothing else is written.

    Raises:
        ShapeMismatchError: It has another shape.
        InvalidOptionError: It is no dense tensor of the dtype on the device, or shares memory with a source.
    """

    try:
        fact, expected, got, hint = _why_not_writable(out)
    except (RuntimeError, NotImplementedError):  # wrappers of functorch and the like
        fact, expected, got, hint = "has no plain memory to write into", "a plain tensor", type(out).__name__, None
    if not fact and tuple(out.shape) != shape:
        larger = shape and tuple(out.shape[1:]) == shape[1:] and out.shape[0] > shape[0]
        raise ShapeMismatchError(
            subject,
            "out has another shape than the result",
            expected=shape,
            got=tuple(out.shape),
            hint=f"out=out[:{shape[0]}] writes into its first part" if larger else f"out=torch.empty({shape}, ...)",
        )
    if not fact and out.dtype != row.torch:
        fact, expected, got = f"is {out.dtype} and the result {row.torch}", row.name, str(out.dtype)[len("torch.") :]
        hint = f"out=torch.empty({shape}, dtype={row.torch})"
    if not fact and device is not None and torch.device(device).type != out.device.type:
        fact, expected, got = f"lies on {out.device}, not where device={device!r} says", device, str(out.device)
    if not fact and out.device.type == "cpu" and out.numel():
        target = _bridge.alias(out, writable=True)
        for i, source in enumerate(sources):
            if np.may_share_memory(target, source) and _memory.overlap(_footprint(target), _footprint(source)):
                fact, hint = f"shares memory with source {i}", "out=torch.empty_like(out)"
    if fact:
        raise InvalidOptionError(subject, f"out {fact}", expected=expected, got=got, hint=hint)


def _why_not_writable(out: Any) -> tuple[str, Any, Any, str | None]:
    """Say why nothing can be written into ``out``, or ``""``; what it should be, what it is, and what helps."""
    if not isinstance(out, torch.Tensor):
        hint = "out=ndtorch.to_torch(array) shares an array"
        return "is no tensor", "a torch.Tensor", type(out).__name__, hint
    if out.layout is not torch.strided or out.is_conj() or out.is_neg():
        got = "a lazily conjugated one" if out.layout is torch.strided else str(out.layout)
        return f"has no plain memory to write into: {describe(out)}", "a dense tensor", got, None
    if type(out) is not torch.Tensor and describe(out).opaque is not None:
        return "has no plain memory to write into", "a plain tensor", type(out).__name__, None
    if out.is_meta:
        return "is a meta tensor, which has no memory", None, None, "device='meta' makes one of the result's shape"
    if not _is_allocated(out):
        return "has a storage smaller than itself", None, None, "out=torch.empty_like(out)"
    if out.requires_grad:
        return "requires grad: autograd could not see the write", None, None, "out=tensor.detach()"
    if _overlaps_itself(out):
        return "has items that lie on each other", "distinct items", describe(out), "out=tensor.contiguous()"
    return "", None, None, None


def _footprint(array: AnyArray) -> tuple[int, tuple[int, ...], tuple[int, ...], int]:
    return array.__array_interface__["data"][0], array.shape, array.strides, array.itemsize


def _is_allocated(tensor: torch.Tensor) -> bool:
    """Whether the storage holds every item: it may have been resized since."""
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + reach + 1) * tensor.element_size()
    return tensor.numel() == 0 or tensor.untyped_storage().nbytes() >= needed


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    axes = sorted((stride, n) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    extent = 1
    for stride, n in axes:
        if stride < extent:
            break
        extent = stride * (n - 1) + extent
    else:
        return False
    if tensor.numel() == 0:
        return False
    if math.prod(n for _, n in axes) > _LOOK_AT:
        return True  # too many to look at: refused rather than written twice
    places = np.zeros(1, np.int64)
    for stride, n in axes:
        places = (places[:, None] + np.arange(n) * stride).ravel()
    return np.unique(places).size < places.size
