"""Arrays over tensors and tensors over arrays: the native bridge, and torch's own functions where it is off.

The native functions take the plain case of `to_torch` and `to_numpy`. At import each direction proves itself on
real objects; one that does not, or ``NDTORCH_FAST=0``, leaves its work to `torch.from_numpy` and `Tensor.numpy`.
"""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch

from . import _native
from ._dtypes import KIND_ORDER, TABLE, DType, from_numpy_dtype
from ._torch_dtypes import BY_TORCH

F = TypeVar("F", bound=Callable[..., Any])

_MAX_BYTES = 2**63 - 1
_TRANSFORM = torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode
_FIRST_REGISTERED = 256  # NumPy numbers the dtypes of other packages, such as ml_dtypes, from here


@dataclass(frozen=True)
class Status:
    """Which way each direction goes.

    Attributes:
        fast: Whether both go natively.
        to_torch: How plain arrays become tensors.
        to_numpy: How plain tensors become arrays.
        notes: Why something is slower than it could be.
    """

    fast: bool
    to_torch: str
    to_numpy: str
    notes: tuple[str, ...]


def status() -> Status:
    """Say which tier each direction runs on, and why."""
    return Status(
        fast=all(_is_native.values()),
        to_torch="DLPack exchange API" if _is_native["to_torch"] else "torch.from_numpy",
        to_numpy="C shim, storage pinned" if _is_native["to_numpy"] else "torch.Tensor.numpy",
        notes=tuple(_notes),
    )


def accelerate(inside: Callable[..., Any]) -> Callable[[F], F]:
    """Put the native plain case in front of the Python ``to_torch`` or ``to_numpy``.

    The builtin takes one plain array or tensor, or dicts, lists and tuples of them, and at most the keywords
    ``copy``, ``dtype`` and ``float_dtype``. Any other call reaches the Python function as it is. Name, signature and
    docstring stay those of the Python function.

    Args:
        inside: Converts one leaf of a structure that is not plain, with the keywords of the call.
    """

    def decorate(slow: F) -> F:
        behind.append(slow)
        if not _is_native[slow.__name__]:
            return slow
        signature = inspect.signature(slow)
        bare = signature.replace(
            parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
            return_annotation=signature.empty,
        )
        doc = f"{slow.__name__}{bare}\n--\n\n{inspect.getdoc(slow) or ''}"
        return cast(F, _native.accelerate(slow.__name__, "ndtorch", slow, inside, doc))

    return decorate


def watch(active: bool) -> None:
    """Send every call to the Python functions while ``active``, for the whole process."""
    _native.watch(active)


def share(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Make the tensor over an array's memory, a read-only array's too, without a warning.

    Memory:
        Shared; the tensor keeps the array alive. Writing is the caller's responsibility.

    Raises:
        ValueError: torch cannot describe the array: its dtype, byte order, alignment or strides.
    """
    tensor = _native.share(array) if _is_native["to_torch"] else None
    if tensor is not None:
        return tensor
    row = from_numpy_dtype(array.dtype)
    why_not = _why_not_describable(array, row)
    if row is None or why_not:
        raise ValueError(f"a tensor cannot describe this array: {why_not}")
    if array.size == 0:
        return torch.empty(array.shape, dtype=row.torch, device="cpu")
    owner = _Writable(array)
    tensor = torch.from_numpy(np.asarray(owner)).view(row.torch)
    storage = _storage_of(tensor)
    if storage is not None:
        # Called without Python code, which would swallow a Ctrl-C that comes within it.
        _owners[weakref.ref(storage, _owners.pop)] = weakref.ref(owner)
    return tensor


def made_known(tensor: torch.Tensor) -> torch.Tensor:
    """Make a new tensor known to the torch.func transform that is running, as `torch.from_numpy` does.

    Unknown ones could be read there, but a write of transformed values into them is an error.
    """
    in_transform = torch._C._dispatch_tls_is_dispatch_key_included(_TRANSFORM)
    return torch.ops.aten.lift_fresh.default(tensor) if in_transform else tensor


def fresh(
    shape: tuple[int, ...], row: DType, blocks: _native.Blocks | None = None
) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Make a tensor on the CPU that nothing is written to yet, and the array over its memory.

    Memory:
        New, or out of ``blocks``; shared by the two, dense in row-major order, on huge pages where it is large.

    Raises:
        MemoryError: There is not so much memory.
    """
    if _is_native["to_numpy"] and 0 not in shape:
        pair = _native.fresh(shape, row.scalar_type, blocks)
        if pair is not None:
            return pair
    try:
        array = np.empty(shape, row.numpy)
    except ValueError:  # so large that its bytes cannot be counted
        raise MemoryError(f"no memory for {row.name}[{','.join(map(str, shape))}]") from None
    return share(array), array


def alias(tensor: torch.Tensor, *, writable: bool) -> np.ndarray[Any, Any]:
    """Make the array over a dense CPU tensor's memory, whether or not it requires grad.

    Memory:
        Shared; the array keeps the storage alive and pins it, so it cannot be resized any more. Where the owner of
        the memory is known the array keeps that alive instead, and so survives a move of the storage (pytorch#51849).

    Raises:
        TypeError, RuntimeError: torch's own, for a tensor that has no such memory or dtype.
    """
    array = _native.alias(tensor, writable) if _is_native["to_numpy"] else None
    if array is not None:
        return array
    plain = tensor.detach()
    row = BY_TORCH.get(tensor.dtype)
    if row is None or row.numpy is None or row.numpy.num < _FIRST_REGISTERED:
        array = plain.numpy()
    else:
        array = plain.view(torch.uint8 if row.itemsize == 1 else torch.int16).numpy()
    owner = _owner_of(tensor)
    if owner is not None:
        array = np.asarray(_Held(array, owner))
    if row is not None and row.numpy is not None and array.dtype != row.numpy:
        array = array.view(row.numpy)
    if not writable:
        array.flags.writeable = False
    return array


def is_movable(tensor: torch.Tensor) -> bool:
    """Say whether torch may give a CPU tensor other memory and leave arrays over it dangling (pytorch#51849).

    Not so where an array holds the owner of the memory itself, nor in shared memory, where the tensor stays.
    """
    if _native.has_owner(tensor) if _is_native["to_numpy"] else _owner_of(tensor) is not None:
        return False
    storage = tensor.untyped_storage()
    return not (isinstance(storage, torch.UntypedStorage) and storage.is_shared())


def _owner_of(tensor: torch.Tensor) -> _Writable | None:
    """The owner of a tensor's present memory, where `share` made it without the native bridge."""
    storage = _storage_of(tensor) if _owners else None
    found = None if storage is None else _owners.get(weakref.ref(storage))
    owner = None if found is None else found()
    if storage is None or owner is None or storage.data_ptr() != owner.__array_interface__["data"][0]:
        return None
    return owner


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return None
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # inside a torch.func transform it stands for another tensor
        return None
    return storage if isinstance(storage, torch.UntypedStorage) else None  # a TorchFunctionMode may answer


def const_data_ptr(tensor: torch.Tensor) -> int:
    """Read a tensor's address, without giving a lazily cloned tensor its own memory where possible."""
    address = _native.const_data_ptr(tensor) if _is_native["to_numpy"] else None
    return tensor.data_ptr() if address is None else address


def _why_not_describable(array: np.ndarray[Any, Any], row: DType | None) -> str:
    if row is None or row.numpy is None:
        return f"torch has no dtype {array.dtype}"
    if not array.dtype.isnative:
        return "its bytes are swapped"
    if not array.flags.aligned:
        return "it is not aligned"
    if array.size == 0:
        return ""
    pairs = [(n, stride) for n, stride in zip(array.shape, array.strides, strict=True) if n > 1]
    if any(stride < 0 for _, stride in pairs):
        return "a stride is negative"
    if any(stride % array.itemsize for _, stride in pairs):
        return "a stride is not a multiple of the item"
    extent = array.itemsize + sum((n - 1) * stride for n, stride in pairs)
    return "" if max(extent, array.nbytes) <= _MAX_BYTES else "its size overflows"


class _Writable:
    """Somebody's memory under an interface that says writable, which torch.from_numpy takes without a warning.

    Integers stand in for the dtypes of ml_dtypes, which torch.from_numpy does not know.
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        size = array.itemsize
        self.array = array
        self.__array_interface__ = {
            "version": 3,
            "data": (array.__array_interface__["data"][0], False),
            "typestr": f"=i{size}" if array.dtype.num >= _FIRST_REGISTERED else array.dtype.str,
            "shape": array.shape,
            # Along a single item any stride is allowed in NumPy, and none is used.
            "strides": tuple(abs(stride) // size * size for stride in array.strides),
        }


class _Held:
    """The memory of an array whose owner is kept alive instead of its base."""

    def __init__(self, array: np.ndarray[Any, Any], owner: _Writable) -> None:
        self.owner = owner
        self.__array_interface__ = {**array.__array_interface__, "strides": array.strides}


# A storage is the same object for as long as its memory or another lives; the owner dies with its last holder.
_owners: dict[weakref.ref[torch.UntypedStorage], weakref.ref[_Writable]] = {}


# ---- the proof at import ----


class _SelfTestError(Exception):
    """A native conversion did something else than torch's own."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _SelfTestError(what)


def _native_row(row: DType) -> _native.Row:
    aliases = {np.dtype(code).num for code in np.typecodes["All"] if from_numpy_dtype(np.dtype(code)) is row}
    assert row.numpy is not None
    numbers: list[int] = sorted({*aliases, row.numpy.num})
    return (numbers, row.numpy, row.torch, row.scalar_type, KIND_ORDER[row.kind], *row.dlpack)


def _address(array: np.ndarray[Any, Any]) -> int:
    return cast(int, array.__array_interface__["data"][0])


def _round_trips(row: DType, *, back: bool) -> bool:
    array = np.zeros(2, row.numpy)
    tensor = _native.share(array)
    if tensor is None or tensor.dtype is not row.torch or tensor.data_ptr() != _address(array):
        return False
    if not back:
        return True
    again = _native.alias(tensor, True)
    return again is not None and again.dtype == row.numpy and _address(again) == _address(array)


def _unshareable_arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Arrays that are copied: torch cannot describe them, or must not write to them."""
    plain = np.arange(16, dtype=np.float32).reshape(4, 4)
    read_only = plain[:]
    read_only.flags.writeable = False
    return {
        "reversed": plain[::-1],
        "read-only": read_only,
        "unaligned": np.ndarray((4,), np.int16, np.arange(12, dtype=np.uint8), 1),
        "odd strides": np.ndarray((2,), np.float32, plain, strides=(6,)),
        "byte-swapped": plain.astype(plain.dtype.newbyteorder()),
    }


def _odd_arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Arrays that are Python's to decide about."""
    plain = np.zeros((4, 4), np.float32)
    return {
        "overflowing": np.lib.stride_tricks.as_strided(plain[0], (3,), (2**62,)),
        "broadcast": np.broadcast_arrays(plain[0], plain)[0],
        "record": np.zeros(4, [("a", np.int8), ("b", np.int16)]),
        "datetime": np.zeros(2, "datetime64[s]"),
    }


def _odd_tensors() -> dict[str, torch.Tensor]:
    conj = torch.zeros(2, dtype=torch.complex64, device="cpu").conj()
    unallocated = torch.zeros(2, device="cpu")
    unallocated.untyped_storage().resize_(0)
    return {
        "conj": conj,
        "neg": conj.imag,
        "sparse": torch.zeros(2, 2, device="cpu").to_sparse(),
        "meta": torch.zeros(2, device="meta"),
        "unallocated": unallocated,
    }


def _test_to_torch(convert: Callable[..., Any]) -> None:
    array = np.arange(24.0).reshape(2, 3, 4)[:, ::2, 1:]
    references = sys.getrefcount(array)
    for tensor in (convert(array), convert([array])[0]):
        _require(type(tensor) is torch.Tensor, "an array did not become a tensor")
        _require(tensor.data_ptr() == _address(array), "the tensor is elsewhere")
        _require(tensor.stride() == (12, 8, 1), "the tensor's strides are wrong")
        _require(tensor.tolist() == array.tolist(), "the tensor's values are wrong")
        _require(sys.getrefcount(array) > references, "the tensor does not hold the array")
    del tensor
    _require(sys.getrefcount(array) == references, "a dead tensor still holds the array")
    for name, odd in _odd_arrays().items():
        _require(convert(odd) is None and convert([array, odd])[1] is None, f"a {name} array is plain")
        _require(convert(odd, copy=True) is None, f"a {name} array is copied")
    for name, odd in _unshareable_arrays().items():
        _require(convert(odd, copy=False) is None, f"a {name} array is shared")
        _test_copy(convert(odd), odd, f"a {name} array")
        _test_copy(convert([array, odd])[1], odd, f"a {name} array in a list")
    _test_copy(convert(array, copy=True), array, "a copy")
    _test_copy(convert(array, dtype=torch.float32), array, "a cast")
    _require(convert(array, dtype=torch.int32) is None, "a cast to integers is plain")


def _test_copy(tensor: Any, array: np.ndarray[Any, Any], what: str) -> None:
    _require(type(tensor) is torch.Tensor, f"{what} did not become a tensor")
    _require(tensor.tolist() == array.tolist(), f"{what} has other values")
    _require(tensor.data_ptr() != _address(array) and tensor.is_contiguous(), f"{what} is no fresh memory")


def _test_to_numpy(convert: Callable[..., Any]) -> None:
    tensor = torch.arange(24, dtype=torch.float64, device="cpu").view(2, 3, 4)[:, ::2, 1:]
    storage = tensor.untyped_storage()
    references = sys.getrefcount(storage)
    for array in (convert(tensor), convert([tensor])[0]):
        _require(type(array) is np.ndarray, "a tensor did not become an array")
        _require(_address(array) == tensor.data_ptr(), "the array is elsewhere")
        _require(array.strides == (96, 64, 8), "the array's strides are wrong")
        _require(array.tolist() == tensor.tolist(), "the array's values are wrong")
        _require(array.flags.writeable, "the array is read-only")
        _require(sys.getrefcount(storage) > references, "the array does not hold the storage")
    del array
    _require(sys.getrefcount(storage) == references, "a dead array still holds the storage")
    _require(not storage.resizable(), "the storage is not pinned")
    for name, shown in {
        "leaf": torch.zeros(2, device="cpu").requires_grad_(),
        "expanded": torch.zeros(1, device="cpu").expand(2),
    }.items():
        _require(not convert(shown).flags.writeable, f"the array over a {name} tensor is writable")
    for name, odd in _odd_tensors().items():
        _require(convert(odd) is None and convert([tensor, odd])[1] is None, f"a {name} tensor is plain")


def _nothing(source: object, **options: object) -> None:
    """Stand in for the Python function, so that the self-test sees which calls reach it."""


def _enable(name: str, enable: Callable[[], str], test: Callable[..., None]) -> bool:
    why_not = enable()
    if not why_not:
        try:
            test(_native.accelerate(name, "ndtorch", _nothing, _nothing, name))
        except Exception as error:
            why_not = f"{type(error).__name__}: {error}"
    if why_not:
        _notes.append(f"{name} is not native: {why_not}")
    return not why_not


def _enable_owners() -> None:
    why_not = _native.enable_owners() if _is_native["to_numpy"] else "it needs to_numpy"
    try:
        if not why_not:
            _test_owners()
    except _SelfTestError as error:
        why_not = str(error)
    if why_not:
        _notes.append(f"arrays over a tensor that torch moves dangle (pytorch#51849): {why_not}")


def _test_owners() -> None:
    array = np.zeros(2)
    references = sys.getrefcount(array)
    for convert in (_native.share, torch.from_numpy):
        tensor = convert(array)
        again = None if tensor is None else _native.alias(tensor, True)
        _require(again is not None and not isinstance(again.base, torch.UntypedStorage), "the array holds a storage")
        del tensor
        _require(sys.getrefcount(array) > references, "the array does not hold the owner")
        del again
        _require(sys.getrefcount(array) == references, "a dead array still holds the owner")


def _accelerators() -> tuple[dict[str, Any], ...]:
    # Only a build for a device has one that could still be writing into a tensor on the CPU.
    built = {"cuda": torch.version.cuda or torch.version.hip, "xpu": torch.version.xpu}
    return tuple(vars(getattr(torch, name)) for name, version in built.items() if version)


def _start() -> None:
    """Turn on what proves itself, dtype by dtype and direction by direction."""
    rows = {row.name: row for row in TABLE if row.numpy is not None}
    _native.set_dtypes([_native_row(row) for row in rows.values()])
    _native.set_thread_count(torch.get_num_threads)
    if os.environ.get("NDTORCH_FAST") == "0":
        _notes.append("NDTORCH_FAST=0 switches the native bridge off")
        return
    with torch.inference_mode(False):
        _is_native["to_torch"] = _enable("to_torch", _native.enable_to_torch, _test_to_torch)
        if not _is_native["to_torch"]:
            return
        _is_native["to_numpy"] = _enable("to_numpy", lambda: _native.enable_to_numpy(_accelerators()), _test_to_numpy)
        _enable_owners()
        good = [row for row in rows.values() if _round_trips(row, back=_is_native["to_numpy"])]
    _native.set_dtypes([_native_row(row) for row in good])
    left_out = sorted(rows.keys() - {row.name for row in good})
    if left_out:
        _notes.append(f"not native: {', '.join(left_out)}")


behind: list[Callable[..., Any]] = []
"""The Python functions that stand behind the builtins, which no name leads to."""

_notes: list[str] = []
_is_native = {"to_torch": False, "to_numpy": False}
_start()
