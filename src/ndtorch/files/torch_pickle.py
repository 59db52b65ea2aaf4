"""What ``torch.save`` pickled, read as symbols: names of tensors and what is said of them, and nothing is ever called.

The pickle is a program. Its steps are followed with stand-ins: a function of torch is the name of one, a call of it a
note of its arguments, and any name that ``torch.save`` has no need of ends the reading. Dicts are lists of pairs, so
that no key is ever hashed, and nothing is copied that could be shared: no step costs more than it is long.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._dtypes import BY_NAME
from .._errors import FormatError, UnsupportedTypeError

_MAX_STEPS = 4_000_000  # some ten seconds, and 800 MB of stand-ins; a number takes one, a text two
_STEPS_OF_RECORD = 50  # a tensor takes 30, a parameter 40
_PLAIN = "ndtorch.write('x.safetensors', tensors) with the tensors of torch.load(path, weights_only=True)"
_MAX_ARGUMENTS = 10
_HINT = (
    "if you trust it, x = torch.load(path, weights_only=False); torch.save(ndtorch.to_checkpoint(x).state, path) "
    "writes plain tensors; where x is a torch.nn.Module, x = x.state_dict() comes before that"
)


@dataclass(slots=True)
class Pairs:
    """A dict: its keys and values as they were put in."""

    pairs: list[tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Name:
    """A name of Python's that was mentioned, such as ``torch.float32``; nothing was looked up under it."""

    text: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """A value that is no array: a device, a layout."""


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """A storage: elements in a record of the archive.

    Attributes:
        dtype: Name of their dtype, empty for bytes.
        key: Name of the record.
        numel: How many they are.
    """

    dtype: str
    key: Any
    numel: Any


@dataclass(frozen=True, slots=True)
class TensorClaim:
    """A tensor, as the arguments say that make it again; none of them has been checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any = None
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class Special:
    """A tensor that is more than strided memory: sparse, quantized, without elements.

    Attributes:
        kind: What it is, in words that follow "it is".
        size: Its sizes, where they are known.
    """

    kind: str
    size: Any = ()


@dataclass(frozen=True, slots=True)
class Characters:
    """Bytes, each as a character."""

    text: str


DTYPE_OF_STORAGE = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt8Storage": "quint8",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
"""What the classes of storages hold that torch keeps for the sake of old files; other storages are bytes."""

_STORAGES = {f"torch.{name}": dtype for name, dtype in DTYPE_OF_STORAGE.items()} | {"torch.storage.UntypedStorage": ""}

# Those of torch and of its extensions that NumPy has no number format for; see also the table of dtypes.
_OTHER_DTYPE = re.compile(r"(u?int[1-7]|q(u?int)(8|32|4x2|2x4)|bits\d+(x\d+)?|float4_e2m1fn_x2|complex32)")
_DTYPES = frozenset(BY_NAME)
_VALUES = frozenset(
    "torch." + name
    for name in (
        *("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "contiguous_format"),
        *("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric"),
        "per_channel_affine_float_qparams",
    )
)
_CLASSES = frozenset(
    f"torch.{name}"
    for name in ("Tensor", "_tensor.Tensor", "nn.parameter.Parameter", "nn.parameter.Buffer", "nn.Parameter")
)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorClaim:
    return TensorClaim(storage, offset, size, stride, metadata=rest[2] if len(rest) > 2 else None)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any) -> Any:
    return TensorClaim(storage, offset, size, stride, dtype, rest[0] if rest else None)


def _mapping(source: Any = None) -> Pairs:
    """An OrderedDict, or a Counter, of nothing, a dict or pairs."""
    if isinstance(source, Pairs):
        return source
    if source is None or source == []:
        return Pairs([])
    raise ValueError("a dict made of something else")


def _sparse(layout: Any, data: Any) -> Special:
    return Special("sparse", next((part for part in data[:4] if isinstance(part, tuple)), ()))


def _encoded(source: Any = b"", encoding: Any = "latin1") -> Any:
    """Bytes, that old pickles have as text of as many characters."""
    return Characters(source) if isinstance(source, str) else source


def _complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


_UTILS = "torch._utils._rebuild_"
_MAKERS: dict[str, Callable[..., Any]] = {
    _UTILS + "tensor": _tensor,
    _UTILS + "tensor_v2": _tensor,
    _UTILS + "tensor_v3": _tensor_v3,
    _UTILS + "sparse_tensor": _sparse,
    _UTILS + "sparse_csr_tensor": _sparse,
    _UTILS + "qtensor": lambda storage, offset, size, *rest: Special("quantized", size),
    _UTILS + "nested_tensor": lambda *parts: Special("nested"),
    _UTILS + "meta_tensor_no_storage": lambda dtype, size, *rest: Special("on the meta device, without elements", size),
    _UTILS + "wrapper_subclass": lambda cls, dtype, size, *rest: Special("of a class that wraps others", size),
    _UTILS + "device_tensor_from_cpu_tensor": lambda data, *rest: data,
    _UTILS + "parameter": lambda data, *rest: data,
    _UTILS + "parameter_with_state": lambda data, *rest: data,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_MAKERS,
    "torch.Size": lambda sizes=(): sizes,
    "torch.device": lambda *parts: Nothing(),
    "torch.serialization._get_layout": lambda name: Nothing(),
    "torch._tensor._rebuild_from_type_v2": lambda maker, cls, args, state: _made_as(maker, cls, args),
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "_codecs.encode": _encoded,
    "builtins.bytearray": _encoded,
    "builtins.set": lambda items=(): items,
    "builtins.complex": _complex,
}


def _made_as(maker: Any, cls: Any, args: Any) -> Any:
    """A tensor with attributes, which are not arrays of their own, or of a class of torch's."""
    if not isinstance(maker, Name) or maker.text not in _MAKERS or not isinstance(cls, Name):
        raise ValueError("a tensor made by no function of torch's")
    return _MAKERS[maker.text](*args[:_MAX_ARGUMENTS])


def load(data: bytes, where: str, records: int = 0) -> Any:
    """Follow a pickle: dicts are `Pairs`, tensors `TensorClaim` or `Special`; lists, tuples and numbers are themselves.

    Args:
        data: The pickle, of any length that the file has: what it takes depends on its steps.
        where: What errors call the file.
        records: How many storages the file has; so many tensors are no bomb.

    Raises:
        UnsupportedTypeError: It mentions something that is neither torch's nor plain.
        FormatError: It is damaged, or does what ``torch.save`` does not.
    """
    machine = _Machine(where)
    most = _MAX_STEPS + _STEPS_OF_RECORD * records
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            step = _STEPS.get(opcode.name)
            if step is None:
                fact = f"{where} has a pickle with a step {opcode.name}, which torch.save does not write"
                raise FormatError("read", fact)
            if count > most:
                fact = (
                    f"{where} has a pickle of more than {most:,} steps: more than a million values beside its tensors"
                )
                raise FormatError("read", fact, hint=_PLAIN)
            step(machine, argument)
        (result,) = machine.stack
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError, RecursionError) as error:
        if isinstance(error, FormatError | UnsupportedTypeError):
            raise
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise FormatError("read", f"{where} has a pickle that is damaged: {reason}") from None
    except struct.error as error:
        raise FormatError("read", f"{where} has a pickle that is damaged: {error}") from None
    return result


class _Machine:
    """The stack that the steps of a pickle work on, the values that it refers to, and the places it marked."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def mention(self, name: str) -> None:
        """Push the name of a function or a class, if torch.save has need of it."""
        module, _, rest = name.partition(" ")
        name = f"{_OLD_MODULES.get(module, module)}.{rest}"
        known = name in _CALLS or name in _STORAGES or name in _CLASSES or name in _VALUES
        if not known and not (module == "torch" and (rest in _DTYPES or _OTHER_DTYPE.fullmatch(rest))):
            fact = f"{self.where} refers to {name[:80]!r}, which is never looked up"
            raise UnsupportedTypeError("read", fact, hint=_HINT)
        self.stack.append(Name(name))

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(args, tuple) or function.text not in _CALLS:
            raise ValueError("it calls what is no function")
        self.stack.append(_CALLS[function.text](*args[:_MAX_ARGUMENTS]))

    def build(self) -> None:
        """Leave out attributes, such as the versions of modules that a state dict has."""
        self.stack.pop()
        if not isinstance(self.stack[-1], Pairs):
            raise ValueError("it gives attributes to what is no dict")

    def refer(self) -> None:
        kind, cls, key, _, numel = self.stack.pop()
        if kind != "storage" or not isinstance(cls, Name):
            raise ValueError("it refers to something else than storages")
        self.stack.append(StorageRecord(_STORAGES[cls.text], key, numel))

    def put_pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Pairs):
            raise ValueError("it sets items of what is no dict")
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))

    def put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target.extend(items)

    def make_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ValueError("its stack is empty")
        self.stack[-count:] = [items]


_OLD_MODULES = {"__builtin__": "builtins"}

_Step = Callable[[_Machine, Any], Any]
_PUSHED = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_PUSHED, lambda machine, argument: machine.stack.append(argument)),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, key: machine.memo.update({key: machine.stack[-1]})),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, key: machine.stack.append(machine.memo[key])),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append(Pairs([])),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.put_items([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.put_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.put_items(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.put_pairs([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.put_pairs(machine.since_mark()),
    "GLOBAL": lambda machine, name: machine.mention(name),
    "STACK_GLOBAL": lambda machine, _: machine.mention(f"{machine.stack.pop(-2)} {machine.stack.pop()}"),
    "BINPERSID": lambda machine, _: machine.refer(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
