"""Describe: what a source is, read from its metadata alone. No element is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from . import _bridge, _memory
from ._casting import kind_of
from ._dtypes import DType, from_numpy_dtype
from ._errors import NdtorchError, UnsupportedTypeError
from ._torch_dtypes import BY_TORCH
from .foreign.forms import Foreign, Memory, Parts, Refused, Unread

AnyArray = npt.NDArray[Any]

Form = Literal[
    "number",  # a dtype that both worlds hold
    "foreign number",  # a number format with no torch counterpart, such as longdouble
    "time",  # datetime64, timedelta64: 64-bit integers
    "bytes",  # S: one uint8 per character, in one more dimension
    "text",  # U: one int32 code point per character, in one more dimension
    "struct",  # fields, in `parts`
    "masked",  # data and mask, in `parts`
    "object",  # Python objects; only reading them tells what they are
    "nested",  # a tensor of tensors, in `parts`
    "table",  # named columns, in `parts`
    "ragged",  # arrays of different lengths, slices of the one in `parts`
    "sparse",  # values and their indices, in `parts`
    "python",  # numbers and nested lists of numbers
    "opaque",  # a tensor whose memory cannot be read, or a dtype without a meaning here
]

_WARN_ON_WRITE = 1 << 31  # set by numpy.broadcast_arrays: NumPy means to make these read-only
_WRITEABLE = 0x400
MAX_DIMS = 64  # of a NumPy array


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of one source before a byte of it is read.

    Attributes:
        library: ``numpy``, ``torch`` or ``python``; ``foreign`` for an object of another library that is made of parts.
        form: What sort of thing its elements are.
        text: Its dtype as printed, such as ``f64`` or ``M8[ns]``.
        dtype: Row of the dtype table that its elements have in the other world, if any.
        numpy_dtype: Dtype of its elements as NumPy numbers, byte order included.
        own_dtype: Dtype that an array says it has, such as ``datetime64[ns]``.
        shape: Sizes, as the source has them.
        view_shape: Sizes of the numbers inside: text has one more dimension.
        strides: Bytes from element to element of the numbers, one per ``view_shape``.
        address: Where the first element lies; 0 when unknown.
        readonly: Whether its owner forbids writing.
        is_scalar: Whether it is a NumPy scalar, which has a value but no memory to share.
        aligned: Whether the address suits the element.
        device: Where it lies, in torch's words.
        mapping: The file an array is mapped from, if it is.
        requires_grad: Whether autograd follows it.
        movable: Whether torch may give a tensor other memory and leave arrays over it dangling (pytorch#51849).
        lazy: ``conj`` or ``neg`` when a tensor's values are not yet what its memory holds.
        opaque: Why its memory cannot be read, and what to call instead.
        error: What is raised when it is opaque.
        parts: Fields of a structured array, data and mask of a masked one, by path.
        origin: The library that an object of another library came from, such as ``pandas``.
        unread: Why that object has no memory to share until it is read.
        nulls: How many of its values are missing, and where; empty where none is.
        remedy: What its library gives it a value for each missing one with, in words.
        notes: What else the caller may want to know.
    """

    library: Literal["numpy", "torch", "python", "foreign"]
    form: Form
    text: str
    dtype: DType | None = None
    numpy_dtype: np.dtype[Any] | None = None
    own_dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] = ()
    view_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    address: int = 0
    readonly: bool = False
    is_scalar: bool = False
    aligned: bool = True
    device: str = "cpu"
    mapping: _memory.FileMapping | None = None
    requires_grad: bool = False
    movable: bool = False
    lazy: str = ""
    opaque: tuple[str, str] | None = None
    error: type[NdtorchError] = UnsupportedTypeError
    parts: Mapping[str, Spec] = field(default_factory=dict)
    origin: str = ""
    unread: str = ""
    nulls: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.shape))
        return f"{self.text}[{sizes}]({self.origin or self.library})"

    @property
    def size(self) -> int:
        """Number of elements, as numbers."""
        size = 1
        for n in self.view_shape:
            size *= n
        return size

    @property
    def itemsize(self) -> int:
        """Bytes per number; 0 when unknown."""
        if self.numpy_dtype is not None:
            return self.numpy_dtype.itemsize
        if self.dtype is not None:
            return self.dtype.itemsize
        return int(getattr(torch, self.text).itemsize) if self.library == "torch" else 0

    @property
    def swapped(self) -> bool:
        """Whether the bytes of each element are in the other order."""
        return self.numpy_dtype is not None and not self.numpy_dtype.isnative

    @property
    def broadcast_axes(self) -> tuple[int, ...]:
        """Axes along which one element stands for many."""
        return tuple(i for i, (n, s) in enumerate(zip(self.view_shape, self.strides, strict=True)) if s == 0 and n > 1)

    @property
    def distinct(self) -> int:
        """Number of elements that have memory of their own: broadcast axes count once."""
        size = self.size
        for axis in self.broadcast_axes:
            size //= self.view_shape[axis]
        return size

    @property
    def extent(self) -> int:
        """Bytes from the lowest to past the highest element, as exact integers."""
        if self.size == 0:
            return 0
        return sum((n - 1) * abs(s) for n, s in zip(self.view_shape, self.strides, strict=True)) + self.itemsize


def describe(source: Any) -> Spec:
    """Describe one array, tensor, number, list of numbers or recognised object of another library.

    >>> str(describe(np.zeros((3, 4))))
    'f64[3,4](numpy)'
    >>> describe(np.zeros(3)[::-1]).strides
    (-8,)
    """
    if isinstance(source, torch.Tensor):
        return _describe_tensor(source)
    if isinstance(source, np.ndarray):
        return _describe_array(source)
    if isinstance(source, np.generic):
        # A NumPy scalar owns a value, not memory that could be shared.
        return _as_scalar(_describe_array(np.asarray(source)))
    if isinstance(source, Foreign):
        return _describe_foreign(source)
    return Spec("python", "python", type(source).__name__, shape=_list_shape(source))


def _describe_foreign(source: Foreign) -> Spec:
    notes = (source.note,) if source.note else ()
    if isinstance(source, Memory):
        spec = describe(source.array)
        readonly = spec.readonly or source.readonly
        return replace(spec, origin=source.library, readonly=readonly, notes=notes)
    if isinstance(source, Unread):
        # An array that takes no memory stands for the one to come.
        spec = _describe_array(np.broadcast_to(np.empty((), source.dtype), source.shape))
        return replace(_as_unread(spec, source.library, source.reason), notes=notes)
    if isinstance(source, Parts):
        parts = {path: describe(part) for path, part in source.parts.items() if part is not None}
        text = f"masked {parts['.data'].text}" if source.form == "masked" else source.text
        own = parts[".data"].own_dtype if source.form == "masked" else None
        return Spec(
            "foreign",
            source.form,
            text,
            own_dtype=own,
            shape=source.shape,
            parts=parts,
            origin=source.library,
            nulls=source.nulls,
            remedy=source.remedy,
            notes=notes,
        )
    assert isinstance(source, Refused)
    opaque = (source.fact, source.hint)
    return Spec(
        "foreign",
        "opaque",
        source.text,
        shape=source.shape,
        origin=source.library,
        opaque=opaque,
        error=source.error,
        notes=notes,
    )


def _as_unread(spec: Spec, library: str, reason: str) -> Spec:
    strides = tuple(spec.itemsize * math.prod(spec.view_shape[i + 1 :]) for i in range(len(spec.view_shape)))
    plain = replace(spec, address=0, strides=strides, readonly=False, aligned=True, origin=library, unread=reason)
    return replace(plain, parts={path: _as_unread(part, library, reason) for path, part in spec.parts.items()})


def _as_scalar(spec: Spec) -> Spec:
    return replace(spec, is_scalar=True, parts={step: _as_scalar(part) for step, part in spec.parts.items()})


def _list_shape(source: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(source, list | tuple) and len(shape) < MAX_DIMS:  # a list may be inside itself
        shape.append(len(source))
        if not source:
            break
        source = source[0]
    return tuple(shape)


def numbers_inside(array: AnyArray) -> AnyArray:
    """View an array as the numbers that torch can hold: time as int64, text as code points.

    Always a view, whatever the strides; arrays of numbers are returned as plain ndarrays.
    """
    if type(array) is not np.ndarray:
        array = array.view(np.ndarray)
    dtype = array.dtype
    kind = dtype.kind
    if kind in "Mm":
        return array.view(np.dtype(np.int64).newbyteorder(dtype.byteorder))
    if kind == "S":
        return array.view(np.dtype((np.uint8, (dtype.itemsize,))))
    if kind == "U":
        code_point = np.dtype(np.int32).newbyteorder(dtype.byteorder)
        return array.view(np.dtype((code_point, (dtype.itemsize // 4,))))
    return array


def _describe_array(array: AnyArray) -> Spec:
    if isinstance(array, np.ma.MaskedArray):
        parts = {".data": _describe_array(array.data)}
        if array.mask is not np.ma.nomask:
            parts[".mask"] = _describe_array(np.asarray(array.mask))
        text = f"masked {parts['.data'].text}"
        remedy = "array.filled(value) fills them"
        return Spec("numpy", "masked", text, own_dtype=array.dtype, shape=array.shape, parts=parts, remedy=remedy)
    if array.dtype.names is not None:
        fields = {f"[{name!r}]": _describe_array(array[name]) for name in array.dtype.names}
        return Spec("numpy", "struct", "struct", own_dtype=array.dtype, shape=array.shape, parts=fields)
    form, text, opaque = _form_of(array.dtype)
    if form in ("bytes", "text") and array.ndim == MAX_DIMS:
        form, opaque = "opaque", ("its characters would need one dimension more than there are", "array.ravel()")
    view = array if opaque is not None else numbers_inside(array)
    flags = array.flags.num
    readonly = not flags & _WRITEABLE or bool(flags & _WARN_ON_WRITE)
    return Spec(
        "numpy",
        form,
        text,
        dtype=from_numpy_dtype(view.dtype) if form != "object" else None,
        numpy_dtype=view.dtype,
        own_dtype=array.dtype,
        shape=array.shape,
        view_shape=view.shape,
        strides=view.strides,
        address=view.__array_interface__["data"][0] if form != "object" else 0,
        readonly=readonly,
        aligned=view.flags.aligned,
        mapping=_memory.file_behind(view, array),
        opaque=opaque,
    )


def _form_of(dtype: np.dtype[Any]) -> tuple[Form, str, tuple[str, str] | None]:
    row = from_numpy_dtype(dtype)
    if row is not None:
        return "number", row.short, None
    if dtype.kind in "Mm":
        return "time", dtype.str[1:], None
    if dtype.kind in "SU":
        length = dtype.itemsize if dtype.kind == "S" else dtype.itemsize // 4
        return ("bytes" if dtype.kind == "S" else "text"), f"{dtype.kind}{length}", None
    if dtype.kind == "O":
        return "object", "object", None
    if kind_of(dtype) is not None:
        return "foreign number", dtype.name, None
    if dtype.kind == "T":
        return (
            "opaque",
            "StringDType",
            ("text of varying length has no tensor form", "numpy.array(array.tolist()) gives text of one length"),
        )
    if dtype.kind == "V":
        hint = "array.view(dtype) says what its bytes mean, such as .view(ml_dtypes.bfloat16)"
        return "opaque", f"V{dtype.itemsize}", ("void bytes have no meaning as numbers", hint)
    return (
        "opaque",
        dtype.name,
        (f"dtype {dtype} has no tensor form", "array.astype(dtype) with a number dtype"),
    )


def _describe_tensor(tensor: torch.Tensor) -> Spec:
    row = BY_TORCH.get(tensor.dtype)
    text = row.short if row else str(tensor.dtype).removeprefix("torch.")
    opaque = why_opaque(tensor)
    if opaque is None and row is None:
        opaque = (
            f"NumPy has no dtype for {tensor.dtype}",
            "tensor.view(torch.uint8) gives its bytes",
        )
    shape = _shape_of(tensor)
    if tensor.is_nested and opaque is None:
        parts = {f"[{i}]": _describe_tensor(part) for i, part in enumerate(tensor.unbind())}
        return Spec("torch", "nested", f"nested {text}", row, shape=shape, device=str(tensor.device), parts=parts)
    if opaque is not None:
        return Spec(
            "torch",
            "opaque",
            text,
            row,
            shape=shape,
            view_shape=shape,
            device=str(tensor.device),
            opaque=opaque,
        )
    assert row is not None
    address = _bridge.const_data_ptr(tensor) if tensor.device.type == "cpu" else 0
    return Spec(
        "torch",
        "number",
        text,
        row,
        row.numpy,
        shape=shape,
        view_shape=shape,
        strides=tuple(s * row.itemsize for s in tensor.stride()),
        address=address,
        device=str(tensor.device),
        requires_grad=tensor.requires_grad,
        movable=bool(address) and _bridge.is_movable(tensor),
        lazy="conj" if tensor.is_conj() else "neg" if tensor.is_neg() else "",
    )


def _shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.is_nested:  # its sizes are symbols, or there are none at all
        return ()
    return tuple(int(n) for n in tensor.shape)


def why_opaque(tensor: torch.Tensor) -> tuple[str, str] | None:
    """Say why a tensor's memory cannot be read as an array, and what to call instead."""
    name = type(tensor).__name__
    if name == "DTensor":
        return "a DTensor is spread over processes", "tensor.full_tensor() gathers it"
    if name == "FakeTensor" or tensor.is_meta:
        return (
            f"a {'fake' if name == 'FakeTensor' else 'meta'} tensor has a shape but no values",
            "torch.empty_like(tensor, device='cpu') gives it memory",
        )
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return "FakeTensorMode lets nobody read a real tensor", "convert it outside the mode"
    if tensor.is_nested:
        return None
    if tensor.is_quantized:
        return (
            "a quantized tensor holds codes and a scale",
            "tensor.dequantize() gives values, tensor.int_repr() the codes",
        )
    if tensor.layout is not torch.strided:
        return (
            f"its layout is {str(tensor.layout).removeprefix('torch.')}",
            "tensor.to_dense() gives a plain tensor",
        )
    if tensor._is_zerotensor():
        return "an efficient zero tensor has no memory", "torch.zeros_like(tensor) gives it some"
    if _is_transformed(tensor):
        return (
            "a tensor inside vmap, grad or functionalize stands for another",
            "convert it outside the transformed function",
        )
    if _is_wrapper(tensor):
        return (
            f"a {name} computes its values through __torch_dispatch__",
            f"convert the plain tensors that {name} wraps",
        )
    if tensor.device.type == "cpu" and tensor.numel() and not _bridge.const_data_ptr(tensor):
        return (
            "its storage was emptied",
            "fill it again, for example with tensor.untyped_storage().resize_",
        )
    return None


def _is_transformed(tensor: torch.Tensor) -> bool:
    functorch = getattr(torch._C, "_functorch", None)
    is_wrapped = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return bool(is_wrapped is not None and is_wrapped(tensor)) or torch._is_functional_tensor(tensor)


def _is_wrapper(tensor: torch.Tensor) -> bool:
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return False
    return hasattr(type(tensor), "__tensor_flatten__")
