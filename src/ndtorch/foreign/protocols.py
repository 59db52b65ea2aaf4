"""What any object can say about its memory: DLPack, NumPy's array interface, buffers, Arrow, ``__array__``."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from .forms import Foreign, Memory, Refused, Unread

AnyArray = npt.NDArray[Any]

_CPU, _CUDA, _ROCM = 1, 2, 10  # DLPack's numbers of devices
_DEVICES = {_CPU: "cpu", _CUDA: "cuda", 8: "mps", _ROCM: "cuda", 14: "xpu"}
_NUMPY_CODES = (0, 1, 2, 5, 6)  # DLPack's numbers of int, uint, float, complex and bool
_IS_READ_ONLY, _IS_COPIED = 1, 2  # flags of a versioned tensor
_DLPACK = (1, 0)  # the first version that can say that memory is read-only
_HINT = "numpy.asarray(source) or a method of its own may say more"


def from_protocol(source: Any) -> Foreign | None:
    """Ask an object of an unknown class for its memory; ``None`` when it speaks no protocol.

    Those that share memory and can say that it is read-only come first, ``__array__``, which may do anything, last.
    An object that fails at one may still speak the next; if none works, the first failure is told.
    """
    if isinstance(source, type):  # a class has the methods, but no memory
        return None
    cls = type(source)
    name = f"{cls.__module__.partition('.')[0]}.{cls.__name__}".removeprefix("builtins.")
    failed: Refused | None = None
    for take in (_from_dlpack, _from_interface, _from_buffer, _from_arrow, _from_array_method):
        try:
            taken = take(source, name)
        except MemoryError:
            raise
        except Exception as error:  # an unknown object may raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            taken = Refused(name, cls.__name__, (), f"asking it for its memory failed: {reason}", _HINT)
        if isinstance(taken, Refused):
            failed = failed or taken
        elif taken is not None:
            return taken
    return failed


# --- DLPack


class _Facts(NamedTuple):
    """What a capsule says of its tensor; strides in items."""

    versioned: bool
    flags: int
    device: int
    has_memory: bool
    code: int
    bits: int
    lanes: int
    shape: list[int]
    strides: list[int]

    @property
    def extent(self) -> int:
        """Bytes from the lowest to past the highest item, as an exact integer."""
        if 0 in self.shape:
            return 0
        steps = [(n - 1) * abs(stride) for n, stride in zip(self.shape, self.strides, strict=True)]
        return (sum(steps) + 1) * self.bits * self.lanes // 8


def _from_dlpack(source: Any, library: str) -> Foreign | None:
    cls = type(source)
    if hasattr(cls, "__dlpack__") and hasattr(cls, "__dlpack_device__"):
        return from_dlpack(source, library)
    return None


def from_dlpack(source: Any, library: str) -> Foreign:
    """Take what an object hands out through DLPack, on any device that torch has here.

    Read-only is what says that it is, and also what is handed out by the old protocol, which cannot say it.
    """
    kind, index = map(int, source.__dlpack_device__())
    why_not = _why_not_reached(kind)
    if why_not:
        return Refused(library, "DLPack", (), why_not, "a copy of it on the CPU")
    capsule = _capsule(source, kind, index)
    found = _native.dlpack_facts(capsule)
    if found is None:
        fact = f"what it handed out is no DLPack capsule but a {type(capsule).__name__}"
        if type(capsule).__name__ == "PyCapsule":
            fact = "its DLPack capsule is used up, or is of an unknown version, or describes no array"
        return Refused(library, "DLPack", (), fact, _HINT)
    facts = _Facts(*found)
    why_not = _why_not_taken(facts, kind)
    if why_not:
        return Refused(library, "DLPack", tuple(facts.shape), why_not, "a copy of it in row-major order")
    readonly = not facts.versioned or bool(facts.flags & _IS_READ_ONLY)
    if not _is_for_numpy(facts, kind):
        return Memory(library, torch.utils.dlpack.from_dlpack(capsule), readonly=readonly)
    array: AnyArray = np.from_dlpack(_Handed(capsule))
    if facts.flags & _IS_COPIED:
        return Unread(library, array.dtype, array.shape, "it makes a copy when it is asked", lambda: array)
    if readonly:
        array.flags.writeable = False
    return Memory(library, array)


class _Handed:
    """A capsule that was asked for already, for `numpy.from_dlpack`, which wants to ask."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **words: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0


def _why_not_reached(kind: int) -> str:
    """Torch makes tensors on devices that it cannot use, so it has to be asked first."""
    name = _DEVICES.get(kind)
    if name is None:
        return f"its memory is on a device of DLPack type {kind}, which torch cannot address"
    if name != "cpu" and not (getattr(torch, name).is_available()):
        return f"its memory is on a {name} device, which torch cannot use here"
    return ""


def _capsule(source: Any, kind: int, index: int) -> Any:
    """Ask for the new protocol first, and on a GPU for memory that the current stream may read."""
    words: dict[str, Any] = {}
    if kind in (_CUDA, _ROCM):
        stream = torch.cuda.current_stream(index).cuda_stream
        words["stream"] = 1 if stream == 0 and kind == _CUDA else stream  # 1 is CUDA's legacy default stream
    try:
        return source.__dlpack__(max_version=_DLPACK, **words)
    except TypeError:  # from before there were versions
        return source.__dlpack__(**words)


def _why_not_taken(facts: _Facts, kind: int) -> str:
    """What would end the process, or be read as garbage, if it were believed."""
    if facts.device != kind:
        return f"it says that its device is of DLPack type {kind}, but its memory is on one of type {facts.device}"
    if min(facts.shape, default=0) < 0 or max(facts.extent, math.prod(facts.shape)) >= 2**63:
        return f"no memory has shape {facts.shape} with strides {facts.strides}"
    if facts.extent and not facts.has_memory:
        return "its memory is gone: the pointer is null"
    turned = any(stride < 0 and n > 1 for n, stride in zip(facts.shape, facts.strides, strict=True))
    if turned and not _is_for_numpy(facts, kind):  # would end the process (pytorch#188023)
        return f"torch cannot hold its negative strides {facts.strides}, and NumPy not its dtype or device"
    return ""


def _is_for_numpy(facts: _Facts, kind: int) -> bool:
    """Whether NumPy knows its dtype and can reach its memory; bfloat16 and float8 are torch's."""
    return kind == _CPU and facts.code in _NUMPY_CODES and facts.bits in (8, 16, 32, 64, 128) and facts.lanes == 1


# --- NumPy's own


def _from_interface(source: Any, library: str) -> Foreign | None:
    if not hasattr(source, "__array_interface__") and not hasattr(source, "__array_struct__"):
        return None
    array = np.asarray(source)
    if array.dtype.kind == "O" and not array.ndim and array[()] is source:
        return None  # NumPy found no array in what it said
    if _reaches_past_its_buffer(array, source):
        fact = "its array interface reaches past the buffer that it gives"
        return Refused(library, type(source).__name__, array.shape, fact, _HINT)
    again = np.asarray(source)  # some make new memory when they are asked, as pictures do
    if array.__array_interface__["data"][0] == again.__array_interface__["data"][0]:
        return Memory(library, array)
    return Unread(library, array.dtype, array.shape, "it makes new memory each time it is asked", lambda: array)


def _reaches_past_its_buffer(array: AnyArray, source: Any) -> bool:
    """Whether shape, strides or offset lead out of the buffer behind an array, which NumPy does not check."""
    if not array.size or array.base is None:
        return False
    try:
        buffer = np.frombuffer(array.base, np.uint8)
    except (TypeError, ValueError, BufferError):  # it gives an address, and has to be believed
        return False
    low, high = np.lib.array_utils.byte_bounds(array)
    start, end = np.lib.array_utils.byte_bounds(buffer)
    is_elsewhere = array.base is source and (high <= start or end <= low)
    return not ((start <= low and high <= end) or is_elsewhere)


def _from_buffer(source: Any, library: str) -> Foreign | None:
    try:
        view = memoryview(source)
    except TypeError:  # it has no buffer
        return None
    array = _array_of_ctypes(source)
    if array is None:
        array = np.asarray(view)
    return Memory(library, array.view(np.uint8) if view.format in ("c", "<c") else array)


def _array_of_ctypes(source: Any) -> AnyArray | None:
    """View ctypes structures by their class: NumPy finds a mistake in the format of their buffer, and warns."""
    ctypes = sys.modules.get("ctypes")
    if ctypes is None or not isinstance(source, (ctypes.Structure, ctypes.Union, ctypes.Array)):
        return None
    dtype: np.dtype[Any] = np.dtype(type(source))
    shape: tuple[int, ...] = ()
    while dtype.subdtype is not None:  # an array of arrays
        dtype, shape = dtype.base, shape + dtype.shape
    if dtype.names is None or not dtype.itemsize or 0 in shape:
        return None
    return np.frombuffer(source, np.uint8).view(dtype).reshape(shape)


def _from_arrow(source: Any, library: str) -> Foreign | None:
    """Take what an object hands out through Arrow's C data interface."""
    if hasattr(type(source), "__arrow_c_array__") or hasattr(type(source), "__arrow_c_stream__"):
        from .arrow import Origin, take_arrow  # seldom needed, and slow to import

        return take_arrow(source, Origin(library))
    return None


def _from_array_method(source: Any, library: str) -> Foreign | None:
    if not hasattr(type(source), "__array__"):
        return None
    array = source.__array__()
    if not isinstance(array, np.ndarray):
        fact = f"its __array__ gives a {type(array).__name__}"
        return Refused(library, type(source).__name__, (), fact, "numpy.asarray(source)")
    if _is_fresh(array) and not isinstance(array, np.ma.MaskedArray):
        return Unread(library, array.dtype, array.shape, "its __array__ makes a new array", lambda: array)
    return Memory(library, array)


def _holders(array: AnyArray) -> list[int]:
    """Count who holds an array, and the arrays it is a view of; as many more as Python holds on the way."""
    counts = []
    owner: Any = array
    while isinstance(owner, np.ndarray):
        counts.append(sys.getrefcount(owner))
        owner = owner.base
    return counts


def _holders_of_fresh() -> list[int]:
    """The same for a view that one name holds, and for the array behind it, asked for in the same way."""
    array = np.zeros(2)[:1]
    return _is_held_by(array)


def _is_held_by(array: AnyArray) -> list[int]:
    return _holders(array)


def _is_fresh(array: AnyArray) -> bool:
    """Whether nobody but the one who asked holds this memory."""
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.base is not None or not owner.flags.owndata:
        return False
    del owner
    view, *behind = _holders(array)
    # Compared now and not at import: whoever watches frames, as torch.compile does, holds arguments as well.
    known_view, known_behind = _holders_of_fresh()
    return view <= known_view and all(n <= known_behind for n in behind)
