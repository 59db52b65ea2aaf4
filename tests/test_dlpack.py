"""DLPack: honest, old, mistaken and hostile producers, with capsules made by hand."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares, tensor_holding

import ndtorch as nd


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Unversioned(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
NAMES = {False: b"dltensor", True: b"dltensor_versioned"}
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6, "bfloat16": 4, "float8_e4m3fn": 10}


ALIVE: list[Any] = []  # what a consumer may still point to; an honest producer frees it in its deleter


class Producer:
    """Hands out its array, or what its words say instead of the truth."""

    def __init__(self, values: np.ndarray, *, versioned: bool = True, name: bytes | None = None, **lies: Any) -> None:
        self.values, self.versioned, self.name, self.lies = values, versioned, name, lies
        self.deleted = 0
        self.deleter = DELETER(self._delete)
        ALIVE.append(self)

    def _delete(self, _: int | None) -> None:
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.lies.get("device", 1), self.lies.get("index", 0)

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None, **words: Any) -> Any:
        values, lies = self.values, self.lies
        shape = lies.get("shape", values.shape)
        strides = lies.get("strides", tuple(s // values.itemsize for s in values.strides))
        sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
        steps = None if strides is None else (ctypes.c_int64 * max(len(strides), 1))(*strides)
        managed = (Versioned if self.versioned else Unversioned)()
        ALIVE.append((sizes, steps, managed))
        if self.versioned:
            managed.major, managed.flags = lies.get("major", 1), lies.get("flags", 0)
        managed.deleter = ctypes.cast(self.deleter, ctypes.c_void_p)
        tensor = managed.tensor
        tensor.data = lies.get("data", values.__array_interface__["data"][0])
        tensor.device = Device(lies.get("device_inside", lies.get("device", 1)), 0)
        tensor.ndim = lies.get("ndim", len(shape))
        code = CODES.get(values.dtype.name, CODES.get(values.dtype.kind))
        tensor.dtype = DataType(lies.get("code", code), lies.get("bits", values.itemsize * 8), lies.get("lanes", 1))
        if not lies.get("no_shape"):
            tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
        if steps is not None:
            tensor.strides = ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64))
        return new_capsule(ctypes.addressof(managed), self.name or NAMES[self.versioned], None)


def numbers(dtype: Any = "f4", shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16"]
REGISTERED = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@pytest.mark.parametrize("dtype", [*DTYPES, *REGISTERED])
@pytest.mark.parametrize("shape", [(3, 4), (), (5,)])
def test_dlpack_of_every_dtype_is_shared(dtype: Any, shape: tuple[int, ...]) -> None:
    values = numbers(dtype, shape)
    producer = Producer(values)
    assert nd.explain(producer).shares
    tensor = nd.to_torch(producer)
    assert tensor.data_ptr() == values.__array_interface__["data"][0]
    assert_same(tensor, tensor_holding(values))
    back = nd.to_numpy(producer)
    assert back.__array_interface__["data"][0] == values.__array_interface__["data"][0]
    assert_same(back, values)


@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16])
def test_memory_is_let_go_once_the_tensor_is_gone(dtype: Any) -> None:
    producer = Producer(numbers(dtype))
    tensor = nd.to_torch(producer)
    assert producer.deleted == 0
    del tensor
    assert producer.deleted == 1


@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16])
@pytest.mark.parametrize("words", [{"flags": 1}, {"versioned": False}], ids=["says so", "cannot say"])
def test_memory_that_may_be_read_only_is_copied(dtype: Any, words: dict[str, Any]) -> None:
    values = numbers(dtype)
    assert nd.explain(Producer(values, **words)).reason == "it is read-only"
    assert_same(nd.to_torch(Producer(values, **words)), tensor_holding(values))
    assert_independent(nd.to_torch(Producer(values, **words)), values)
    assert_shares(nd.to_torch(Producer(values, **words), readonly="share"), values)
    assert not nd.to_numpy(Producer(values, **words)).flags.writeable


def test_copy_that_the_producer_made_is_not_called_shared() -> None:
    plan = nd.explain(Producer(numbers(), flags=2))
    assert (plan.reason, plan.nbytes_copied) == ("it makes a copy when it is asked", 48)
    assert_same(nd.to_torch(Producer(numbers(), flags=2)), torch.from_numpy(numbers()))


def test_negative_strides_are_copied_and_those_of_bfloat16_refused() -> None:
    values = numbers()[::-1]
    assert nd.explain(Producer(values)).reason == "axis 0 has a negative stride (-16 bytes)"
    assert_same(nd.to_torch(Producer(values)), tensor_holding(values))
    turned = Producer(numbers(ml_dtypes.bfloat16)[::-1])
    with pytest.raises(nd.UnsupportedTypeError, match="negative strides"):
        nd.to_torch(turned)


def test_missing_strides_mean_row_major() -> None:
    assert_same(nd.to_torch(Producer(numbers(), strides=None)), torch.from_numpy(numbers()))
    assert_same(
        nd.to_torch(Producer(numbers(ml_dtypes.bfloat16), strides=None)), tensor_holding(numbers(ml_dtypes.bfloat16))
    )


HUGE = 2**62
LIES: dict[str, dict[str, Any]] = {
    "a negative size": {"shape": (-1, 4)},
    "two negative sizes": {"shape": (-3, -4)},
    "a size beyond memory": {"shape": (HUGE, 4), "strides": (4, 1)},
    "a size beyond memory without strides": {"shape": (HUGE, HUGE), "strides": None},
    "a size that overflows with stride 0": {"shape": (HUGE, HUGE), "strides": (0, 0)},
    "strides that overflow": {"strides": (HUGE, 1)},
    "the smallest stride": {"strides": (-(2**63), 1)},
    "no data": {"data": None},
    "no shape": {"no_shape": True},
    "negative dimensions": {"ndim": -1},
    "too many dimensions": {"ndim": 65},
    "most dimensions": {"ndim": 2**31 - 1},
    "several lanes": {"lanes": 4},
    "no lanes": {"lanes": 0},
    "no bits": {"bits": 0},
    "a code that nobody knows": {"code": 99},
    "integers of three bits": {"code": 0, "bits": 3},
    "a version to come": {"major": 2},
    "the name of a used capsule": {"name": b"used_dltensor_versioned"},
    "the name of something else": {"name": b"tensor"},
    "another device inside": {"device_inside": 2},
    "a CUDA device": {"device": 2},
    "a CUDA device inside the CPU's": {"device": 2, "device_inside": 1},
    "a Metal device": {"device": 8},
    "a Vulkan device": {"device": 7},
    "a ROCm device": {"device": 10},
    "a oneAPI device": {"device": 14},
    "a device that nobody knows": {"device": 12345},
    "a negative device": {"device": -1},
    "a device that is no number": {"device": "cuda"},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device would believe a pointer into the CPU's memory")
@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", LIES)
def test_dlpack_that_lies_is_refused(name: str, dtype: Any) -> None:
    producer = Producer(numbers(dtype), **LIES[name])
    assert nd.explain(producer).error is not None
    with pytest.raises(nd.NdtorchError) as caught:
        nd.to_torch({"x": producer})
    assert caught.value.path == "['x']"
    with pytest.raises(nd.NdtorchError):
        nd.to_numpy(producer)


@pytest.mark.parametrize("shape", [(0, HUGE, HUGE), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16])
def test_empty_dlpack_is_empty_or_refused(shape: tuple[int, ...], dtype: Any) -> None:
    producer = Producer(numbers(dtype), shape=shape, strides=(1,) * len(shape), data=None)
    try:
        assert nd.to_torch(producer).numel() == 0
    except nd.NdtorchError:
        assert HUGE in shape


class Hands:
    """Hands out whatever it was given."""

    def __init__(self, handed: Any, device: Any = (1, 0)) -> None:
        self.handed, self.device = handed, device

    def __dlpack_device__(self) -> Any:
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def __dlpack__(self, **words: Any) -> Any:
        if isinstance(self.handed, Exception):
            raise self.handed
        return self.handed


@pytest.mark.parametrize("handed", [None, 3, "capsule", np.zeros(3), object(), [], np.zeros(3).__array_struct__])
def test_what_is_no_capsule_is_refused(handed: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="DLPack capsule"):
        nd.to_torch(Hands(handed))


ERRORS = [
    BufferError("no"),
    ValueError(""),
    KeyError("k"),
    ZeroDivisionError(),
    StopIteration(),
    AssertionError("a\nb"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_of_an_unknown_object_become_ours(error: Exception) -> None:
    for hostile in (Hands(error), Hands(None, error)):
        with pytest.raises(nd.UnsupportedTypeError, match="asking it for its memory failed"):
            nd.to_torch(hostile)
        assert nd.explain(hostile).error is not None


@pytest.mark.parametrize("device", [None, 1, (1,), (1, 0, 0), "cpu", ("cpu", 0)])
def test_device_that_is_no_pair_of_numbers_is_refused(device: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(Hands(None, device))


def test_used_capsule_is_refused() -> None:
    capsule = torch.ones(3).__dlpack__(max_version=(1, 0))
    torch.utils.dlpack.from_dlpack(capsule)
    with pytest.raises(nd.UnsupportedTypeError, match="is used up"):
        nd.to_torch(Hands(capsule))


def test_capsule_is_asked_for_once() -> None:
    class Counts(Producer):
        asked = 0

        def __dlpack__(self, **words: Any) -> Any:
            self.asked += 1
            return super().__dlpack__(**words)

    producer = Counts(numbers())
    nd.to_torch(producer)
    assert producer.asked == 1


def test_producer_from_before_there_were_versions_is_asked_without_one() -> None:
    class Old(Producer):
        def __dlpack__(self) -> Any:  # type: ignore[override]
            return super().__dlpack__()

    assert nd.explain(Old(numbers(), versioned=False)).reason == "it is read-only"
    assert_same(nd.to_torch(Old(numbers(), versioned=False)), torch.from_numpy(numbers()))


def test_object_that_fails_at_dlpack_may_still_have_an_array() -> None:
    class Both(Hands):
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return numbers()

    assert_same(nd.to_torch(Both(BufferError("not on this device"))), torch.from_numpy(numbers()))


@pytest.mark.cuda
def test_cupy_array_is_shared_on_its_device() -> None:
    cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed")
    values = cupy.arange(6, dtype="f4").reshape(2, 3)
    tensor = nd.to_torch(values, readonly="share")  # read-only where CuPy speaks the old protocol
    assert tensor.data_ptr() == values.data.ptr
    tensor[0, 0] = 5
    torch.cuda.synchronize()
    assert float(values[0, 0]) == 5
    assert_same(nd.to_numpy(values), values.get())


@pytest.mark.cuda
def test_producer_on_a_gpu_is_asked_with_torchs_stream() -> None:
    class Streams:
        def __init__(self) -> None:
            self.tensor, self.words = torch.ones(3, device="cuda"), {}

        def __dlpack_device__(self) -> Any:
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, **words: Any) -> Any:
            self.words = words
            return self.tensor.__dlpack__(**words)

    producer = Streams()
    assert nd.to_torch(producer, readonly="share").data_ptr() == producer.tensor.data_ptr()
    assert producer.words["stream"] == 1
    with torch.cuda.stream(torch.cuda.Stream()):
        nd.to_torch(producer)
        assert producer.words["stream"] == torch.cuda.current_stream().cuda_stream
