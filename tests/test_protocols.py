"""What any object can say about its memory but DLPack: array interface, buffers, ``__array__``; honest or not."""

from __future__ import annotations

import array
import ctypes
import mmap
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares, tensor_holding

import ndtorch as nd


def numbers(dtype: Any = "f4", shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16"]

ERRORS = [
    BufferError("no"),
    ValueError(""),
    KeyError("k"),
    ZeroDivisionError(),
    StopIteration(),
    AssertionError("a\nb"),
]


# --- NumPy's array interface


class Interface:
    def __init__(self, values: np.ndarray, **lies: Any) -> None:
        self.values = values
        self.__array_interface__ = {**values.__array_interface__, **lies}


class Struct:
    def __init__(self, values: Any) -> None:
        self.__array_struct__ = values.__array_struct__ if isinstance(values, np.ndarray) else values
        self.values = values


@pytest.mark.parametrize("dtype", [*DTYPES, ">f4", "S3"])
@pytest.mark.parametrize("kind", [Interface, Struct])
def test_array_interface_is_shared(kind: Any, dtype: str) -> None:
    values = numbers("i8").astype(dtype)
    result = nd.to_numpy(kind(values))
    assert_shares(result, values)
    assert_same(result, values)
    assert_same(nd.to_torch(kind(values)), nd.to_torch(values.copy()))
    if dtype in DTYPES:
        assert_shares(nd.to_torch(kind(values)), values)


@pytest.mark.parametrize("kind", [Interface, Struct])
def test_read_only_interface_is_copied(kind: Any) -> None:
    values = numbers()
    values.flags.writeable = False
    assert nd.explain(kind(values)).reason == "it is read-only"
    assert nd.to_torch(kind(values)).data_ptr() != values.__array_interface__["data"][0]


def test_interface_keeps_its_object_alive() -> None:
    source = Interface(numbers())
    alive = weakref.ref(source)
    tensor = nd.to_torch(source)
    del source
    assert alive() is not None
    del tensor
    assert alive() is None


def test_interface_that_makes_new_memory_each_time_is_not_called_shared() -> None:
    class Fresh:
        @property
        def __array_interface__(self) -> dict[str, Any]:
            self.values = numbers()
            return {**self.values.__array_interface__, "data": self.values.tobytes()}

    plan = nd.explain(Fresh())
    assert (plan.reason, plan.nbytes_copied) == ("it makes new memory each time it is asked", 48)
    assert_same(nd.to_torch(Fresh()), torch.from_numpy(numbers()))


@pytest.mark.parametrize(
    "interface",
    [
        None,
        3,
        {},
        {"version": 3},
        {"version": 3, "typestr": "<f4", "shape": (3,), "data": None},
        {"version": 3, "typestr": "<f4", "shape": (-3,), "data": (1, False)},
        {"version": 3, "typestr": "<f4", "shape": (2**62, 2**62), "data": (1, False)},
        {"version": 3, "typestr": "<q7", "shape": (3,), "data": (1, False)},
        {"version": 3, "typestr": "<f4", "shape": "three", "data": (1, False)},
        {"version": 3, "typestr": "<f4", "shape": (3,), "data": b"four"},
        {"version": 3, "typestr": "<f4", "shape": (3,), "data": b"four" * 3, "offset": 4},
        {"version": 3, "typestr": "<f4", "shape": (3,), "data": b"four" * 3, "offset": 4000},
        {"version": 3, "typestr": "<f4", "shape": (3,), "data": b"four" * 3, "strides": (-4,)},
        {"version": 3, "typestr": "<f4", "shape": (3,), "data": ("address", False)},
    ],
)
def test_interface_that_makes_no_sense_is_refused(interface: Any) -> None:
    class Mistaken:
        __array_interface__ = interface

    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(Mistaken())
    assert nd.explain(Mistaken()).error is not None


@pytest.mark.parametrize("garbage", [None, 3, b"", object()])
def test_struct_that_makes_no_sense_is_refused(garbage: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(Struct(garbage))


def test_interface_that_raises_is_refused() -> None:
    class Raises:
        @property
        def __array_interface__(self) -> Any:
            raise KeyError("nothing here")

    with pytest.raises(nd.UnsupportedTypeError, match="nothing here"):
        nd.to_torch(Raises())


def test_object_with_every_attribute_is_refused() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **words: None

    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(Anything())


@pytest.mark.parametrize("cls", [Interface, np.ndarray, torch.Tensor, memoryview, bytes])
def test_class_is_not_taken_for_its_objects(cls: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(cls)


# --- the buffer protocol

NATIVE = "bB?hHiIlLqQnNfd"


@pytest.mark.parametrize("letter", NATIVE)
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_memoryview_of_every_format_is_shared(letter: str, shape: tuple[int, ...]) -> None:
    raw = bytearray(struct.pack(f"6{letter}", *([True] * 6 if letter == "?" else range(6))))
    view = memoryview(raw).cast("B").cast(letter, shape)
    expected = np.array(range(6) if letter != "?" else [True] * 6).reshape(shape).astype(np.asarray(view).dtype)
    tensor = nd.to_torch(view)
    assert_same(tensor, tensor_holding(expected))
    assert_shares(tensor, np.asarray(view))


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_memoryview_of_characters_is_bytes(shape: tuple[int, ...]) -> None:
    view = memoryview(bytearray(b"abcdef")).cast("c", shape)
    tensor = nd.to_torch(view)
    assert_same(tensor, torch.arange(97, 103, dtype=torch.uint8).reshape(shape))
    tensor[...] = 0
    assert view.tobytes() == bytes(6)


@pytest.mark.parametrize("step", [2, -1, -3])
def test_memoryview_with_steps_keeps_its_values(step: int) -> None:
    source = array.array("i", range(10))
    view = memoryview(source)[::step]
    assert_same(nd.to_torch(view), torch.tensor(list(range(10))[::step], dtype=torch.int32))
    assert nd.explain(view).shares == (step > 0)


@pytest.mark.parametrize("source", [b"abc", memoryview(b"abc"), bytearray(b"abc").__class__(b"abc")])
def test_bytes_at_top_level_are_an_array_of_uint8(source: Any) -> None:
    assert_same(nd.to_torch(source), torch.tensor([97, 98, 99], dtype=torch.uint8))
    writable = isinstance(source, bytearray)
    assert nd.explain(source).shares == writable
    assert nd.to_numpy(source).flags.writeable == writable


def test_bytes_inside_a_structure_pass_through() -> None:
    assert nd.to_torch({"name": b"abc", "x": np.zeros(1)})["name"] == b"abc"


@pytest.mark.parametrize("source", [b"", bytearray(), array.array("d"), memoryview(b"")[::2], (ctypes.c_int * 0)()])
def test_empty_buffer_is_empty(source: Any) -> None:
    assert nd.to_torch(source).shape == (0,)


@pytest.mark.parametrize("code", [c for c in array.typecodes if c not in "uw"])
def test_array_of_every_typecode_is_shared(code: str) -> None:
    source = array.array(code, range(5))
    tensor = nd.to_torch(source)
    assert_same(tensor, tensor_holding(np.arange(5).astype(np.dtype(code))))
    tensor[0] = 7
    assert source[0] == 7
    with pytest.raises(BufferError):
        source.append(1)  # it cannot move its memory while the tensor looks at it


def test_memory_mapped_file_is_shared_or_mapped_privately(tmp_path: Path) -> None:
    file = tmp_path / "raw"
    file.write_bytes(bytes(range(200)) * 50)
    with file.open("r+b") as opened:
        writable = mmap.mmap(opened.fileno(), 0)
        protected = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    tensor = nd.to_torch(writable)
    tensor[0] = 9
    assert writable[0] == 9
    with pytest.raises(BufferError):
        writable.close()
    plan = nd.explain(protected)
    assert (plan.action, plan.nbytes_copied) == ("map", 0)
    private = nd.to_torch(protected)
    private[1] = 77
    assert (protected[1], file.read_bytes()[1]) == (1, 1)
    del private, tensor, plan
    writable.close()
    protected.close()
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(writable)


def test_released_memoryview_is_refused() -> None:
    view = memoryview(bytearray(3))
    view.release()
    with pytest.raises(nd.UnsupportedTypeError, match="released"):
        nd.to_torch(view)


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int32), ("y", ctypes.c_double * 2)]


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("x", ctypes.c_int8), ("y", ctypes.c_double)]


class Either(ctypes.Union):
    _fields_ = [("x", ctypes.c_int32), ("y", ctypes.c_double)]


class Bits(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int32, 3), ("y", ctypes.c_int32, 5)]


C_NUMBERS = ["bool", "byte", "ubyte", "short", "ushort", "int", "uint", "long", "ulong", "longlong", "float", "double"]


@pytest.mark.parametrize("name", C_NUMBERS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_ctypes_numbers_and_arrays_are_shared(name: str, shape: tuple[int, ...]) -> None:
    cls: Any = getattr(ctypes, f"c_{name}")
    dtype = np.dtype(cls)
    for n in reversed(shape):
        cls = cls * n
    source = cls()
    tensor = nd.to_torch(source)
    assert_same(tensor, tensor_holding(np.zeros(shape, dtype)))
    assert tensor.data_ptr() == ctypes.addressof(source)
    tensor[...] = 1
    assert bytes(source) == np.ones(shape, dtype).tobytes()


def test_big_endian_ctypes_are_swapped() -> None:
    source = (ctypes.c_int32.__ctype_be__ * 3)(1, 2, 3)
    assert nd.explain(source).reason == "its bytes are in the other order"
    assert_same(nd.to_torch(source), torch.tensor([1, 2, 3], dtype=torch.int32))


def test_ctypes_structure_becomes_a_dict_over_its_memory() -> None:
    point = Point(3, (1.5, 2.5))
    result = nd.to_torch(point)
    assert_same(result, {"x": torch.tensor(3, dtype=torch.int32), "y": torch.tensor([1.5, 2.5], dtype=torch.float64)})
    result["y"][0] = 9
    assert point.y[0] == 9


def test_array_of_ctypes_structures_becomes_columns() -> None:
    points = ((Point * 3) * 2)()
    points[1][2].x = 7
    result = nd.to_torch(points)
    assert (result["x"].shape, result["y"].shape, int(result["x"][1, 2])) == ((2, 3), (2, 3, 2), 7)


def test_packed_structures_and_unions_are_read_by_their_class() -> None:
    assert_same(nd.to_torch(Packed(5, 2.5))["y"], torch.tensor(2.5, dtype=torch.float64))
    assert int(nd.to_torch(Either(5))["x"]) == 5


@pytest.mark.parametrize(
    "source",
    [
        Bits(),
        (ctypes.c_char_p * 2)(),
        ctypes.pointer(ctypes.c_int()),
        (ctypes.c_void_p * 2)(),
        (ctypes.c_longdouble * 2)(),
        (ctypes.py_object * 2)(),
        ctypes.py_object(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_ctypes_without_a_meaning_as_numbers_are_refused(source: Any) -> None:
    with pytest.raises(nd.NdtorchError):
        nd.to_torch(source)


def test_indirect_buffer_is_refused_or_copied() -> None:
    testbuffer = pytest.importorskip("_testbuffer", reason="this Python has no _testbuffer")
    source = testbuffer.ndarray(list(range(6)), shape=[2, 3], format="i", flags=testbuffer.ND_PIL)
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(source)


@pytest.mark.parametrize("code", ["i", "<i", ">i", "d", "=q", "T{i:x:d:y:}"])
def test_buffer_of_another_exporter_keeps_its_values(code: str) -> None:
    testbuffer = pytest.importorskip("_testbuffer", reason="this Python has no _testbuffer")
    items = [(i, float(i)) for i in range(6)] if code.startswith("T") else list(range(6))
    if code.startswith("T"):
        source: Any = np.array(items, [("x", "i4"), ("y", "f8")]).data
    else:
        source = testbuffer.ndarray(items, shape=[6], format=code, flags=testbuffer.ND_WRITABLE)
    result = nd.to_torch(source)
    numbers = result["x"] if isinstance(result, dict) else result
    assert numbers.tolist() == list(range(6))


# --- __array__


class Gives:
    """Gives what a function makes of it."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give

    def __array__(self) -> Any:
        return self.give()


class GivesByTheRules(Gives):
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        given = self.give()
        return given.copy() if copy else given


class GivesADtype(Gives):
    def __array__(self, dtype: Any = None) -> Any:
        return self.give()


KINDS = [Gives, GivesByTheRules, GivesADtype]


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_array_is_taken_over(kind: Any) -> None:
    plan = nd.explain(kind(lambda: numbers()))
    assert (plan.reason, plan.nbytes_copied) == ("its __array__ makes a new array", 48)
    assert_same(nd.to_torch(kind(lambda: numbers())), torch.from_numpy(numbers()))
    assert_same(nd.to_torch(kind(lambda: numbers()), dtype="float64"), torch.from_numpy(numbers()).double())
    with pytest.raises(nd.CopyRequiredError):
        nd.to_torch(kind(lambda: numbers()), copy=False)


KEPT = np.arange(12, dtype="f4").reshape(3, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "give", [lambda: KEPT, lambda: KEPT[1:], lambda: KEPT.T, lambda: KEPT.view(), lambda: KEPT[:][1:]]
)
def test_array_that_the_object_keeps_is_shared(kind: Any, give: Any) -> None:
    assert nd.explain(kind(give)).shares
    assert_shares(nd.to_torch(kind(give)), KEPT)
    assert_independent(nd.to_torch(kind(give), copy=True), KEPT)


def test_array_that_the_object_caches_when_asked_is_shared() -> None:
    class Caches:
        cache = None

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            self.cache = numbers() if self.cache is None else self.cache
            return self.cache

    source = Caches()
    assert nd.explain(source).shares
    assert_shares(nd.to_torch(source), source.cache)


def test_array_held_by_a_weak_reference_or_a_buffer_is_never_called_fresh_wrongly() -> None:
    raw = bytearray(48)
    source = Gives(lambda: np.frombuffer(raw, "f4"))
    assert nd.explain(source).shares
    nd.to_torch(source)[0] = 1
    assert raw[3] == 0x3F


def test_read_only_array_is_copied() -> None:
    kept = numbers()
    kept.flags.writeable = False
    assert nd.explain(Gives(lambda: kept)).reason == "it is read-only"
    assert nd.to_torch(Gives(lambda: kept)).data_ptr() != kept.__array_interface__["data"][0]


def test_masked_array_keeps_its_mask() -> None:
    for give in (lambda: np.ma.masked_equal([1, 9, 3], 9), lambda: MASKED):
        with pytest.raises(nd.UnsupportedTypeError, match="a tensor has no mask"):
            nd.to_torch(Gives(give))
        assert_same(nd.to_torch(Gives(give), masked="split").mask, torch.tensor([False, True, False]))


MASKED = np.ma.masked_equal([1, 9, 3], 9)


@pytest.mark.parametrize("garbage", [None, 3, [1, 2], np.float64(1), "array", torch.zeros(3)])
def test_what_is_no_array_is_refused(garbage: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="its __array__ gives a"):
        nd.to_torch(Gives(lambda: garbage))


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_array_method_that_raises_is_refused(error: Exception) -> None:
    def give() -> Any:
        raise error

    with pytest.raises(nd.UnsupportedTypeError, match="asking it for its memory failed"):
        nd.to_torch([Gives(give)])


def test_array_method_that_calls_itself_is_refused() -> None:
    source = Gives(lambda: source.__array__())
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(source)


def test_array_that_holds_its_own_object_is_refused() -> None:
    holder = np.empty((), object)
    source = Gives(lambda: holder)
    holder[()] = source
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(source)


@pytest.mark.parametrize("give", [lambda: np.array([1, 2.5], object), lambda: OBJECTS], ids=["fresh", "kept"])
def test_array_of_objects_is_read_into_numbers(give: Any) -> None:
    assert_same(nd.to_torch(Gives(give)), torch.tensor([1, 2.5], dtype=torch.float64))
    assert nd.explain(Gives(give)).dtype == "float64"
    assert nd.to_numpy(Gives(give)).dtype == object


OBJECTS = np.array([1, 2.5], object)


def test_structured_array_becomes_a_dict() -> None:
    values = np.ones(3, [("x", "f4"), ("y", "i2")])
    expected = {"x": torch.ones(3), "y": torch.ones(3, dtype=torch.int16)}
    for give in (lambda: values, lambda: values.copy()):
        assert_same(nd.to_torch(Gives(give)), expected)


def test_object_without_a_protocol_is_refused_as_before() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="cannot convert an object"):
        nd.to_torch(object())
