"""The two conversions, and what they would do: describe, plan, act, for one array or a structure of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from . import _memory, _trace
from ._act import carry_out, parsed, parts_of
from ._bridge import accelerate
from ._casting import Casting
from ._errors import CopyRequiredError, InvalidOptionError, NdtorchError, UnsupportedTypeError
from ._like import restore_whole
from ._objects import is_list_of_numbers, is_number
from ._options import Options, numpy_options, torch_options
from ._plan import Plan, plan, plan_of_leaves
from ._spec import Spec, describe
from ._structures import is_structure, kept, map_leaves, not_convertible, passes_through, take_apart
from .foreign import Foreign, Memory, Parts, Unread, library_of, recognise
from .foreign.sparse import MADE_OF_OBJECTS, components, is_sparse_tensor


def _leaf_to_torch(leaf: Any, /, **options: Any) -> Any:
    return kept(leaf, "to_torch") if passes_through(leaf) else to_torch(leaf, **options)


def _leaf_to_numpy(leaf: Any, /) -> Any:
    return leaf if passes_through(leaf) else to_numpy(leaf)


@accelerate(inside=_leaf_to_torch)
def to_torch(
    source: Any,
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    casting: Casting = "same_kind",
    readonly: str = "copy",
    masked: str = "error",
) -> Any:
    """Convert anything array-like, or a structure of such things, to tensors.

    Memory:
        Shares memory when that is sound, else copies once; `explain` says which and why. A read-only memory map
        becomes a private copy-on-write mapping of its file: nothing is copied until it is written. When torch moves
        the tensor to shared memory (``share_memory_``, a queue, a spawned worker) the array it came from, and those
        that `to_numpy` made of it, stay valid and keep the old values (pytorch#51849).

    Args:
        source: An array, tensor, number or nested list of numbers, or a dict, list, tuple, named tuple, dataclass
            or registered optree node of them. Strings, None and Python scalars inside a structure pass through.
        dtype: Cast every number to this dtype (torch dtype, NumPy dtype or name).
        float_dtype: Cast floating numbers only; complex ones follow to the matching width.
        device: Where the result lies. None leaves arrays on the CPU and tensors where they are.
        copy: None shares when sound and copies when not; False shares or raises; True always copies.
        casting: ``no``, ``equiv``, ``safe``, ``same_kind``, ``unsafe`` as in NumPy, or ``exact``: any cast, as long
            as every value survives it (NaN survives as NaN, -0.0 as 0).
        readonly: What to do with memory its owner does not let us write: ``copy`` it, ``share`` it at your word
            that nobody writes through the tensor, or raise an ``error``.
        masked: What becomes of missing values (masked arrays, nulls in tables): ``error`` refuses them, ``split``
            gives ``Masked(data, mask)``, ``nan`` makes them NaN in a copy: integers then become float64, times stay
            int64 and become NaT. Columns of other libraries that miss nothing are plain under ``error``.

    Returns:
        A tensor of the source's shape and dtype, or the same structure of tensors. Text and bytes have one more
        dimension; structured arrays become dicts of tensors by field; a scipy.sparse matrix becomes a sparse tensor.

    Raises:
        CopyRequiredError: ``copy=False`` or ``readonly="error"`` and sharing is not sound.
        LossyCastError: A cast that ``casting`` does not allow.
        UnsupportedTypeError: Torch has nothing that could hold the source.
        InvalidOptionError: An option has no such value.

    >>> import numpy as np, ndtorch as nd
    >>> pixels = np.zeros((2, 3), dtype=np.uint8)
    >>> tensor = nd.to_torch(pixels)
    >>> tensor[0, 0] = 255
    >>> int(pixels[0, 0])
    255
    >>> nd.to_torch({"x": np.ones(2), "y": np.array([0, 1])}, float_dtype="float32")
    {'x': tensor([1., 1.]), 'y': tensor([0, 1])}
    """
    options = torch_options(
        dtype=dtype,
        float_dtype=float_dtype,
        device=device,
        copy=copy,
        casting=casting,
        readonly=readonly,
        masked=masked,
    )
    return _convert(source, options)


@accelerate(inside=_leaf_to_numpy)
def to_numpy(
    source: Any,
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    copy: bool | None = None,
    casting: Casting = "same_kind",
    like: Any = None,
) -> Any:
    """Convert anything tensor-like, or a structure of such things, to NumPy arrays.

    Memory:
        Shares memory with CPU tensors; the array keeps the tensor's storage alive and its size fixed. The array is
        read-only where a write would be unsound: over a tensor that requires grad (autograd could not see it) and
        over an expanded tensor (one element stands for many). Tensors on other devices, lazily conjugated or
        negated ones and complex32 are copied. ``share_memory_`` on the tensor, a queue or a spawned worker gives it
        other memory. Over memory of an array or of ndtorch, such as any tensor of `to_torch` or `stack` has, the
        array stays valid and keeps the old values. Over memory that torch owns it dangles: torch offers no way to
        prevent that (pytorch#51849), and `explain` says so.

    Args:
        source: A tensor, array, number or nested list of numbers, or a structure of them, as in `to_torch`.
        dtype: Cast every number to this NumPy dtype. ``datetime64[...]`` and ``timedelta64[...]`` name the numbers of
            an int64 tensor, ``S`` and ``U`` those of a uint8 and an int32 tensor; these share memory.
        float_dtype: Cast floating numbers only; complex ones follow to the matching width.
        copy: None shares when sound and copies when not; False shares or raises; True always copies.
        casting: As in `to_torch`.
        like: What `to_torch` was given: restores structure, dtypes, fields, masks and units.

    Returns:
        An array of the tensor's shape and dtype, or the same structure of arrays. bfloat16 and float8 arrays have
        the dtypes of ml_dtypes. A nested tensor gives a list of arrays, a sparse one a scipy.sparse array.

    Raises:
        CopyRequiredError: ``copy=False`` and sharing is not possible.
        LossyCastError: A cast that ``casting`` does not allow.
        UnsupportedTypeError: The tensor has no memory that an array could hold.
        InvalidOptionError: An option has no such value.

    >>> import numpy as np, torch, ndtorch as nd
    >>> nd.to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    >>> days = np.array(["2024-02-29", "NaT"], dtype="datetime64[D]")
    >>> nd.to_numpy(nd.to_torch(days), like=days)
    array(['2024-02-29',        'NaT'], dtype='datetime64[D]')
    """
    options = numpy_options(dtype=dtype, float_dtype=float_dtype, copy=copy, casting=casting)
    if like is not None:
        result = restore_whole(source, like, options, _convert)
        return result if copy is not False or library_of(like) is None else _shared(result, source, like)
    return _convert(source, options)


def _shared(result: Any, source: Any, like: Any) -> Any:
    """What was restored under ``copy=False``: other libraries copy without a word."""
    places, made = _footprints(source), _footprints(result)
    inside = (
        0 in place[1] or any(at == device and _memory.overlap(theirs, place) for at, theirs in places)
        for device, place in made
    )
    if made and all(inside):
        return result
    reason = f"a {type(like).__name__} of it is new memory"
    fact = f"cannot share memory with the source: {reason}"
    raise CopyRequiredError("to_numpy", fact, hint="copy=None copies", reason=reason)


def _convert(source: Any, options: Options, path: str = "") -> Any:
    if is_structure(source) and not _is_numbers(source):
        return _convert_leaves(source, options, path)
    return _convert_one(source, options, path)


def _convert_leaves(source: Any, options: Options, prefix: str) -> Any:
    watching = _trace.watching()
    if options.asks_nothing and not watching:
        whole = to_torch if options.to == "torch" else to_numpy
        return map_leaves(lambda leaf, path: whole(leaf), source, options.subject, with_paths=False)
    return map_leaves(
        lambda leaf, path: _convert_one(leaf, options, prefix + path), source, options.subject, with_paths=watching
    )


def _convert_one(source: Any, options: Options, path: str = "") -> Any:
    source = recognise(source, options.to)
    return carry_out(plan(_described(source, options), options), source, path)


def _described(source: Any, options: Options) -> Spec:
    spec = describe(source)
    if spec.form == "python" and not _is_numbers(source):
        raise not_convertible(source, options.subject)
    return spec


def explain(source: Any, /, *, to: str = "torch", **options: Any) -> Plan:
    """Say what a conversion would do and why, before a byte moves.

    Never raises for a source: where the call would, the plan's ``error`` holds what it would raise.

    Memory:
        Reads metadata only, with two exceptions: only reading Python objects tells what they are, and the indices of
        a scipy.sparse matrix are checked, and put in order where they are not.

    Args:
        source: As in `to_torch` and `to_numpy`.
        to: ``torch`` or ``numpy``.
        **options: The options of the call.

    Returns:
        A `Plan`: prints as text, shows a picture of the memory layout in a notebook.

    Raises:
        InvalidOptionError: An option has no such value.

    >>> import numpy as np, ndtorch as nd
    >>> print(nd.explain(np.zeros((3, 4))[::-1]))
    f64[3,4](numpy) -> float64[3,4](torch)
      copied: 96 bytes
      reason: axis 0 has a negative stride (-32 bytes)
    """
    if to not in ("torch", "numpy"):
        raise InvalidOptionError("explain", f"to={to!r} has no meaning", expected="'torch' or 'numpy'", got=repr(to))
    checked = torch_options(**options) if to == "torch" else numpy_options(**options)
    if not is_structure(source) or _is_numbers(source):
        return _explain_one(source, checked)
    leaves = {path: _explain_one(leaf, checked) for path, leaf in take_apart(source, "explain").arrays()}
    whole = Spec("python", "struct", type(source).__name__, shape=(len(leaves),))
    return plan_of_leaves(whole, checked, leaves)


def _explain_one(source: Any, options: Options) -> Plan:
    source = recognise(source, options.to)
    try:
        spec = _described(source, options)
    except NdtorchError as error:
        return Plan(describe(source), options, error.fact, "refuse", error=error)
    return _read_on(plan(spec, options), source)


def _read_on(planned: Plan, source: Any) -> Plan:
    """Complete the plan of Python objects, whose dtype only reading them tells."""
    if planned.action == "parts" and not isinstance(source, Unread):
        parts = parts_of(planned, source)
        leaves = {step: _read_on(leaf, parts[step]) for step, leaf in planned.leaves.items()}
        return replace(plan_of_leaves(planned.source, planned.options, leaves), notes=planned.notes)
    if planned.action != "parse":
        return planned
    try:
        inner, fresh = parsed(planned, source)
    except NdtorchError as error:
        return replace(planned, action="refuse", reason=error.fact, error=error)
    if inner.error is not None:
        return replace(inner, source=planned.source, options=planned.options)
    nbytes = inner.nbytes_copied or int(fresh.nbytes)
    return replace(
        inner,
        source=planned.source,
        options=planned.options,
        reason=planned.reason,
        action="parse",
        nbytes_copied=nbytes,
    )


def shares_memory(a: Any, b: Any, /) -> bool:
    """Say exactly whether two arrays or tensors have a byte in common.

    Strides are taken into account: the even and the odd elements of one buffer do not overlap. Given structures,
    it says whether any leaf of one overlaps any leaf of the other. Empty ones share nothing, as in NumPy.

    Memory:
        Reads addresses only.

    Raises:
        UnsupportedTypeError: One of them has no memory to speak of, such as a list of numbers.

    >>> import numpy as np, ndtorch as nd
    >>> a = np.zeros(6)
    >>> nd.shares_memory(a, nd.to_torch(a)), nd.shares_memory(a[::2], nd.to_torch(a[1::2]))
    (True, False)
    """
    return any(
        device_a == device_b and _memory.overlap(place_a, place_b)
        for device_a, place_a in _footprints(a)
        for device_b, place_b in _footprints(b)
    )


_Footprint = tuple[int, tuple[int, ...], tuple[int, ...], int]


def _footprints(value: Any) -> list[tuple[str, _Footprint]]:
    """Devices and byte ranges of every array and tensor in a value."""
    if isinstance(value, np.ma.MaskedArray):
        mask = [] if value.mask is np.ma.nomask else _footprints(np.asarray(value.mask))  # one for all that have none
        return _footprints(value.data) + mask
    if isinstance(value, np.ndarray):
        address = value.__array_interface__["data"][0]
        return [("cpu", (address, value.shape, value.strides, value.itemsize))]
    if isinstance(value, torch.Tensor):
        return _tensor_footprints(value)
    if is_structure(value):
        arrays = take_apart(value, "shares_memory").arrays()
        return [footprint for _, leaf in arrays for footprint in _footprints(leaf)]
    if isinstance(value, np.generic) or _is_numbers(value):
        return []
    if isinstance(value, Memory):
        return _footprints(value.array)
    if isinstance(value, Parts) and value.layout in MADE_OF_OBJECTS:
        return []
    if isinstance(value, Parts):
        return [footprint for part in value.parts.values() if part is not None for footprint in _footprints(part)]
    if isinstance(value, Foreign):  # unread or refused
        return []
    taken = recognise(value, "numpy")  # what its memory is, not what torch would make of it
    if taken is not value:
        return _footprints(taken)
    raise not_convertible(value, "shares_memory")


def _tensor_footprints(tensor: torch.Tensor) -> list[tuple[str, _Footprint]]:
    if is_sparse_tensor(tensor):
        return [footprint for part in components(tensor) for footprint in _tensor_footprints(part)]
    spec = describe(tensor)
    if spec.form == "nested":
        return [footprint for part in tensor.unbind() for footprint in _tensor_footprints(part)]
    if tensor.is_meta:
        return []
    if spec.opaque is not None:
        fact, hint = spec.opaque
        raise UnsupportedTypeError("shares_memory", f"cannot compare {spec}: {fact}", hint=hint)
    address = spec.address or tensor.data_ptr()
    return [] if not address else [(spec.device, (address, spec.view_shape, spec.strides, spec.itemsize))]


def _is_numbers(value: Any) -> bool:
    if type(value) in (list, tuple) and not value:
        return True  # an empty list is one empty array, as for torch.tensor
    return is_number(value) or is_list_of_numbers(value)
