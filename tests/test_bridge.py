"""The native bridge against torch.from_numpy and Tensor.numpy, and against everything that could pull memory away.

The file passes with ``NDTORCH_FAST=0`` too: ``make test`` runs it both ways.
"""

import gc
import inspect
import os
import pickle
import pydoc
import subprocess
import sys
import threading
import types
import weakref
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import ndtorch as nd
from ndtorch import _bridge, _convert, _native
from ndtorch._dtypes import TABLE, from_numpy_dtype

IS_FAST = os.environ.get("NDTORCH_FAST") != "0"
NUMPY_DTYPES = [np.dtype(code) for code in "?bhilqBHILQefdFD"] + [
    row.numpy for row in TABLE if row.numpy is not None and row.numpy.num >= 256
]
TORCH_DTYPES = [row.torch for row in TABLE if row.numpy is not None]
CONTEXTS = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
only_fast = pytest.mark.skipif(not IS_FAST, reason="NDTORCH_FAST=0")


def run(code: str, **env: str) -> str:
    """What a fresh interpreter prints; a crash there fails the test here."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def integers_of(itemsize: int) -> torch.dtype:
    return torch.uint8 if itemsize == 1 else torch.int16


# ---- arrays to tensors ----


def filled(dtype: np.dtype, *shape: int) -> np.ndarray:
    random = np.random.default_rng(0)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    raw = random.bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(bytearray(raw), dtype).reshape(shape).copy()


def strided(array: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    # NumPy cannot restride every dtype of ml_dtypes, but plain bytes.
    raw = array.view(f"V{array.itemsize}")
    return np.lib.stride_tricks.as_strided(raw, shape, strides).view(array.dtype)


def windows(array: np.ndarray) -> np.ndarray:
    return strided(array, (array.size - 1, 2), array.strides * 2)


def repeated(array: np.ndarray) -> np.ndarray:
    return strided(array, (3, *array.shape), (0, *array.strides))


def along_one_item(array: np.ndarray, stride: int) -> np.ndarray:
    return strided(array, (1, *array.shape), (stride, *array.strides))


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def in_record(array: np.ndarray, offset: int, size: int) -> np.ndarray:
    record = np.zeros(
        array.shape, np.dtype({"names": ["f"], "formats": [array.dtype], "offsets": [offset], "itemsize": size})
    )
    record["f"] = array
    return record["f"]


ARRAYS = {
    "0-d": lambda d: filled(d, 1)[0:1].reshape(()),
    "1-d": lambda d: filled(d, 7),
    "2-d": lambda d: filled(d, 3, 5),
    "4-d": lambda d: filled(d, 2, 3, 4, 5),
    "transposed": lambda d: filled(d, 3, 5).T,
    "permuted": lambda d: filled(d, 2, 3, 4).transpose(1, 2, 0),
    "fortran": lambda d: np.asfortranarray(filled(d, 3, 5)),
    "every other": lambda d: filled(d, 9)[::2],
    "inner block": lambda d: filled(d, 5, 6)[1:4, 2:5],
    "new axis": lambda d: filled(d, 5)[:, None, None],
    "windows": lambda d: windows(filled(d, 6)),
    "zero stride": lambda d: repeated(filled(d, 4)),
    "64 dims": lambda d: filled(d, *([1] * 62), 2, 3),
    "empty": lambda d: filled(d, 0, 3),
    "one item, huge stride": lambda d: along_one_item(filled(d, 3), d.itemsize << 40),
    "one item, negative stride": lambda d: along_one_item(filled(d, 3), -d.itemsize),
    "one item, odd stride": lambda d: along_one_item(filled(d, 3), 3 * d.itemsize + 1),
    "reversed": lambda d: filled(d, 4, 3)[::-1],
    "read-only": lambda d: read_only(filled(d, 4)),
    "broadcast": lambda d: np.broadcast_to(filled(d, 3), (2, 3)),
    "broadcast arrays": lambda d: np.broadcast_arrays(filled(d, 3), np.zeros((2, 3)))[0],
    "unaligned": lambda d: in_record(filled(d, 4), 1, 2 * d.itemsize),
    "odd strides": lambda d: in_record(filled(d, 4), 0, 2 * d.itemsize + 1),
    "swapped": lambda d: filled(d, 4).astype(d.newbyteorder()) if d.num < 256 else filled(d, 4),
    "subclass": lambda d: filled(d, 4).view(np.recarray),
}


def by_torch(array: np.ndarray) -> torch.Tensor | None:
    """What torch.from_numpy makes of it; None where it refuses or warns."""
    row = from_numpy_dtype(array.dtype)
    # Reading flags.writeable of what np.broadcast_arrays made warns, and so does torch.
    if not array.flags.num & 0x400 or array.flags.num & (1 << 31):
        return None
    if not array.dtype.isnative:
        return None
    if not array.flags.aligned:
        return None  # torch takes it, and its kernels assume that nobody does
    if array.dtype.num >= 256:
        array = array.view(np.uint8 if row.itemsize == 1 else np.int16)
    elif array.dtype.char == "Q":
        array = array.view(np.uint64)
    try:
        return torch.from_numpy(array).view(row.torch)
    except (TypeError, ValueError):
        return None


def steps(tensor: torch.Tensor) -> list[int]:
    """The strides that are ever taken."""
    return [stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]


def check_tensor(tensor: torch.Tensor, array: np.ndarray) -> None:
    row = from_numpy_dtype(array.dtype)
    assert type(tensor) is torch.Tensor
    assert tensor.dtype is row.torch
    assert tensor.shape == array.shape
    assert (
        bytes_of(tensor)
        == array.astype(array.dtype.newbyteorder("=") if array.dtype.num < 256 else array.dtype).tobytes()
    )
    expected = by_torch(array)
    if expected is None:
        assert array.flags.num & 0x400 or not array.size or tensor.data_ptr() != address(array)
        return
    assert tensor.data_ptr() == expected.data_ptr()
    assert tensor.is_inference() == expected.is_inference()
    assert not tensor.requires_grad
    if array.size:
        assert steps(tensor) == steps(expected)
        assert tensor.untyped_storage().nbytes() == expected.untyped_storage().nbytes()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: f"{dtype}-{dtype.num}")
def test_arrays_become_what_torch_makes_of_them(dtype: np.dtype, context: str) -> None:
    arrays = [make(dtype) for make in ARRAYS.values()]
    with CONTEXTS[context]():
        for name, array in zip(ARRAYS, arrays, strict=True):
            before = array.tobytes()
            check_tensor(nd.to_torch(array), array)
            assert array.tobytes() == before, name
        for tensor, array in zip(nd.to_torch(arrays), arrays, strict=True):
            check_tensor(tensor, array)
        plain = [array for array in arrays if by_torch(array) is not None]
        for tensor, array in zip(nd.to_torch(plain), plain, strict=True):
            check_tensor(tensor, array)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: f"{dtype}-{dtype.num}")
def test_writes_go_both_ways(dtype: np.dtype) -> None:
    array, other = filled(dtype, 3, 4), filled(dtype, 5, 4)[2:]
    tensor = nd.to_torch(array)
    array[...] = other
    assert bytes_of(tensor) == other.tobytes()
    nd.to_numpy(tensor)[...] = filled(dtype, 3, 4)
    assert array.tobytes() == filled(dtype, 3, 4).tobytes()


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: f"{dtype}-{dtype.num}")
def test_share_takes_what_torch_can_describe_and_refuses_the_rest(dtype: np.dtype) -> None:
    for name, make in ARRAYS.items():
        array = make(dtype)
        described = array.dtype.isnative and array.flags.aligned
        described = described and all(
            s >= 0 and s % dtype.itemsize == 0 for n, s in zip(array.shape, array.strides, strict=True) if n > 1
        )
        if not described:
            with pytest.raises(ValueError, match="cannot describe"):
                _bridge.share(array)
            continue
        tensor = _bridge.share(array)
        assert tensor.dtype is from_numpy_dtype(dtype).torch, name
        assert not array.size or tensor.data_ptr() == address(array), name
        assert tensor.shape == array.shape
        assert bytes_of(tensor) == array.tobytes(), name


def test_share_refuses_sizes_that_would_abort_torch() -> None:
    array = np.zeros(8)
    for shape, strides in [((3,), (2**62,)), ((2, 2), (2**62, 2**62)), ((2**40, 2), (2**23, 2**62))]:
        huge = np.lib.stride_tricks.as_strided(array, shape, strides)
        with pytest.raises(ValueError, match="overflow"):
            _bridge.share(huge)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(6.0),
        lambda: read_only(np.arange(6.0)),
        lambda: np.arange(6, dtype=np.ulonglong),
        lambda: np.arange(6).view(np.recarray),
        lambda: np.arange(6).astype(ml_dtypes.bfloat16),
    ],
)
def test_share_keeps_the_array_alive(make) -> None:
    array = make()
    tensor, gone = _bridge.share(array), weakref.ref(array)
    del array
    gc.collect()
    assert gone() is not None
    assert tensor.tolist() == list(range(6))
    del tensor
    assert gone() is None


def test_a_dispatch_mode_sees_the_conversion() -> None:
    with FakeTensorMode():
        assert type(nd.to_torch(np.zeros(3))).__name__ == "FakeTensor"
        assert type(_bridge.share(np.zeros(3))).__name__ == "FakeTensor"


def test_default_device_and_dtype_do_not_matter() -> None:
    with torch.device("meta"):
        assert nd.to_torch(np.zeros(3)).device.type == "cpu"
        assert nd.to_torch([np.zeros(3)])[0].device.type == "cpu"
        assert nd.to_numpy(torch.ones(3, device="cpu")).tolist() == [1, 1, 1]


# ---- tensors to arrays ----


def made(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(
        0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return raw.clone().view(dtype).view(shape)


TENSORS = {
    "0-d": lambda d: made(d, 1).view(()),
    "1-d": lambda d: made(d, 7),
    "3-d": lambda d: made(d, 2, 3, 5),
    "transposed": lambda d: made(d, 3, 5).T,
    "permuted": lambda d: made(d, 2, 3, 4).permute(1, 2, 0),
    "channels last": lambda d: made(d, 2, 4, 5, 3).permute(0, 3, 1, 2),
    "every other": lambda d: made(d, 9)[::2],
    "inner block": lambda d: made(d, 5, 6)[1:4, 2:5],
    "windows": lambda d: made(d, 6).unfold(0, 2, 1),
    "one item, any stride": lambda d: made(d, 6).as_strided((1, 3), (2**62, 2)),
    "64 dims": lambda d: made(d, *([1] * 62), 2, 3),
    "empty": lambda d: made(d, 0, 3),
    "expanded": lambda d: made(d, 3, 1).expand(3, 4),
    "expanded along nothing": lambda d: made(d, 3, 1).expand(3, 1),
    "shared": lambda d: made(d, 4).share_memory_(),
    "over an array": lambda d: torch.from_numpy(np.arange(16, dtype=np.uint8) % 2).view(d),
}
DIFFERENTIABLE = {
    "parameter": lambda t: torch.nn.Parameter(t),
    "leaf": lambda t: t.requires_grad_(),
    "non-leaf": lambda t: t.requires_grad_() * 1,
}


def by_numpy(tensor: torch.Tensor) -> np.ndarray:
    """What Tensor.numpy makes of it, were it detached and were every dtype known."""
    row = next(row for row in TABLE if row.torch is tensor.dtype)
    plain = tensor.detach()
    if row.numpy.num < 256:
        return plain.numpy()
    return plain.view(integers_of(row.itemsize)).numpy().view(row.numpy)


def check_array(array: np.ndarray, tensor: torch.Tensor) -> None:
    expected = by_numpy(tensor)
    expanded = any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    assert type(array) is np.ndarray
    assert array.dtype == expected.dtype
    assert array.dtype.num == expected.dtype.num
    assert array.shape == expected.shape
    assert array.strides == expected.strides
    assert array.tobytes() == expected.tobytes()
    assert not array.size or address(array) == address(expected)
    # The one deliberate difference: a write that autograd or an expanded tensor could not bear is impossible.
    assert array.flags.writeable == (not tensor.requires_grad and not expanded) or not array.size
    assert array.flags.aligned
    assert array.flags.c_contiguous == expected.flags.c_contiguous
    assert array.flags.f_contiguous == expected.flags.f_contiguous


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_tensors_become_what_numpy_makes_of_them(dtype: torch.dtype, context: str) -> None:
    tensors = [make(dtype) for make in TENSORS.values()]
    with CONTEXTS[context]():
        tensors += [make(dtype) for name, make in TENSORS.items() if name != "shared"]
        for tensor in tensors:
            check_array(nd.to_numpy(tensor), tensor)
        for array, tensor in zip(nd.to_numpy(tensors), tensors, strict=True):
            check_array(array, tensor)


@pytest.mark.parametrize("context", ["grad", "no_grad"])
@pytest.mark.parametrize("kind", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64], ids=str)
def test_what_requires_grad_is_read_only_in_every_grad_mode(dtype: torch.dtype, kind: str, context: str) -> None:
    for name, make in TENSORS.items():
        if name == "over an array" and dtype is not torch.float64:
            continue
        tensor = DIFFERENTIABLE[kind](make(dtype))
        with CONTEXTS[context]():
            check_array(nd.to_numpy(tensor), tensor)
            check_array(nd.to_numpy([tensor])[0], tensor)
            assert _bridge.alias(tensor, writable=True).flags.writeable
            assert not _bridge.alias(tensor, writable=False).flags.writeable


def test_lazy_bits_are_resolved_in_new_memory() -> None:
    z = torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for lazy in (z.conj(), z.conj().imag, torch._neg_view(z.real), z.conj().real):
        for array in (nd.to_numpy(lazy), nd.to_numpy([lazy])[0]):
            assert array.tolist() == lazy.tolist()
            assert (lazy.is_conj() or lazy.is_neg()) == (address(array) != lazy.data_ptr())


def test_a_lazy_clone_gets_its_own_memory_before_an_array_may_write() -> None:
    original = torch.zeros(4)
    clone = original._lazy_clone()
    if IS_FAST:
        assert _bridge.const_data_ptr(clone) == _bridge.const_data_ptr(original)
    nd.to_numpy(clone)[:] = 1
    assert original.tolist() == [0] * 4
    assert clone.tolist() == [1] * 4
    assert _bridge.const_data_ptr(clone) == clone.data_ptr()


def test_the_array_does_not_keep_the_autograd_graph() -> None:
    array = np.ones(3)
    leaf = nd.to_torch(array).requires_grad_()
    gone = weakref.ref(array)
    product = leaf * 2
    result = nd.to_numpy(product)
    del array, leaf, product
    gc.collect()
    assert gone() is None
    assert result.tolist() == [2, 2, 2]


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_alias_is_as_writable_as_asked(dtype: torch.dtype) -> None:
    for make in TENSORS.values():
        tensor = make(dtype)
        for writable in (True, False):
            array = _bridge.alias(tensor, writable=writable)
            assert array.flags.writeable is writable
            assert array.dtype == by_numpy(tensor).dtype
            assert array.tobytes() == by_numpy(tensor).tobytes()
            assert not tensor.numel() or (
                address(array) == tensor.data_ptr() and not tensor.untyped_storage().resizable()
            )


def test_alias_leaves_odd_tensors_to_torch() -> None:
    class Subclass(torch.Tensor):
        pass

    assert _bridge.alias(torch.ones(2).as_subclass(Subclass), writable=True).tolist() == [1, 1]
    for odd in (
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64).conj(),
    ):
        with pytest.raises((TypeError, RuntimeError)):
            _bridge.alias(odd, writable=True)


def test_a_function_mode_that_answers_for_torch_is_not_believed() -> None:
    class Liar(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") == "untyped_storage":
                return "no storage"
            return function(*args, **(kwargs or {}))

    tensor = torch.arange(3)
    with Liar():
        assert nd.to_numpy(tensor).tolist() == [0, 1, 2]


# ---- which calls are plain ----


@pytest.fixture
def slow_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What reached the Python functions."""
    calls: list[object] = []
    convert = _convert._convert

    def record(source: object, options: object) -> object:
        calls.append(source)
        return convert(source, options)

    monkeypatch.setattr(_convert, "_convert", record)
    return calls


@only_fast
@pytest.mark.parametrize(("convert", "plain"), [(nd.to_torch, np.ones(2)), (nd.to_numpy, torch.ones(2))])
def test_only_plain_calls_skip_python(convert, plain, slow_calls: list[object]) -> None:
    convert(plain)
    for source in ([plain, plain], [plain, 1.0], (plain,), {"a": plain, "b": "text"}, [[plain], ()]):
        convert(source)
    assert slow_calls == []
    for source in ([], [1.0, 2.0], [[1.0]], 1.0, OrderedDict(a=plain)):
        convert(source)
    convert(plain, casting="safe")
    assert len(slow_calls) == 6


@only_fast
def test_only_plain_dtypes_skip_python(slow_calls: list[object]) -> None:
    tree = {"x": np.ones(2), "y": np.ones(2, np.int32), "name": "z"}
    for dtype in (torch.float32, "float32", "".join(["float", "32"]), np.float32, np.dtype("float32")):
        assert nd.to_torch(tree, float_dtype=dtype)["x"].dtype is torch.float32
        assert nd.to_torch(tree["x"], dtype=dtype).dtype is torch.float32
    assert slow_calls == []
    nd.to_torch(tree, float_dtype="f4")
    nd.to_torch({"z": np.ones(2, np.complex64)}, float_dtype="float64")
    assert len(slow_calls) == 3  # two arrays under an alias, one complex


@only_fast
def test_watching_sends_every_call_to_python(slow_calls: list[object]) -> None:
    _bridge.watch(True)
    try:
        nd.to_torch(np.zeros(2))
        nd.to_numpy(torch.zeros(2))
    finally:
        _bridge.watch(False)
    assert len(slow_calls) == 2
    nd.to_torch(np.zeros(2))
    assert len(slow_calls) == 2


def test_wrong_calls_raise_what_python_raises() -> None:
    for wrong in (lambda: nd.to_torch(), lambda: nd.to_torch(1, 2), lambda: nd.to_numpy(torch.ones(1), dtyp=1)):
        with pytest.raises(TypeError, match=r"to_(torch|numpy)\(\)"):
            wrong()


@pytest.mark.parametrize("function", [nd.to_torch, nd.to_numpy], ids=lambda f: f.__name__)
def test_the_functions_look_like_what_they_stand_for(function) -> None:
    signature = inspect.signature(function)
    assert next(iter(signature.parameters.values())).kind is inspect.Parameter.POSITIONAL_ONLY
    assert signature.parameters["casting"].default == "same_kind"
    assert "Memory:" in inspect.getdoc(function)
    assert function.__name__ in pydoc.plain(pydoc.render_doc(function))
    if IS_FAST:
        assert inspect.isbuiltin(function)
        assert function.__module__ == "ndtorch"
        assert pickle.dumps(function).count(b"_convert") == 0
    assert pickle.loads(pickle.dumps(function)) is function


def test_status_says_which_tier_is_on() -> None:
    status = _bridge.status()
    assert status.fast is IS_FAST
    assert (status.notes == ()) is IS_FAST
    assert ("from_numpy" in status.to_torch) is not IS_FAST
    assert ("Tensor.numpy" in status.to_numpy) is not IS_FAST


# ---- lifetime ----


def test_a_tensor_holds_its_array_once_and_lets_go() -> None:
    array = np.zeros(10)
    before = sys.getrefcount(array)
    tensors = [nd.to_torch(array) for _ in range(100)] + nd.to_torch([array] * 100)
    assert sys.getrefcount(array) == before + 200
    view = tensors[0][2:]
    del tensors
    assert sys.getrefcount(array) == before + 1
    del view
    assert sys.getrefcount(array) == before


def test_memory_is_freed_after_any_round_trip() -> None:
    array = np.arange(1000.0)
    gone = weakref.ref(array)
    for _ in range(20):
        array = nd.to_numpy(nd.to_torch(array))[:]
    assert array.tolist() == list(range(1000))
    assert gone() is not None
    del array
    assert gone() is None


def test_dtypes_and_storages_are_not_leaked() -> None:
    tensor = torch.zeros(5, dtype=torch.bfloat16)
    storage = tensor.untyped_storage()
    dtype = np.dtype(ml_dtypes.bfloat16)
    nd.to_numpy(tensor)
    gc.collect()  # of all arrays that other tests have left, whose dtype this is, too
    before = sys.getrefcount(storage), sys.getrefcount(dtype)
    for _ in range(1000):
        nd.to_numpy(tensor)
        nd.to_numpy([tensor, tensor])
        nd.to_numpy([tensor, 1.0])
    assert (sys.getrefcount(storage), sys.getrefcount(dtype)) == before


@only_fast
def test_a_list_that_changes_under_the_call_is_safe() -> None:
    arrays = [np.full(4, i, np.float64) for i in range(200)]
    expected = [array.tolist() for array in arrays]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            arrays.append(np.zeros(1))
            arrays.pop()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(200):
            assert [tensor.tolist() for tensor in nd.to_torch(arrays)[:200]] == expected
    finally:
        stop.set()
        thread.join()


def test_threads_may_create_and_free_at_will() -> None:
    array, tensor = np.arange(100.0), torch.arange(100.0)
    before = sys.getrefcount(array), sys.getrefcount(tensor.untyped_storage())
    failures: list[BaseException] = []
    handed_over: list[object] = []

    def work() -> None:
        try:
            for i in range(1000):
                handed_over.append(nd.to_torch(array))
                handed_over.append(nd.to_numpy(tensor))
                if i % 3:
                    assert handed_over.pop()[7] == 7
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    handed_over.clear()
    gc.collect()
    assert (sys.getrefcount(array), sys.getrefcount(tensor.untyped_storage())) == before


MOVES = """
import gc, numpy as np, torch, ndtorch as nd
from ndtorch import _bridge

def moved(t):
    t.set_(torch.ones(3)); yield
def data(t):
    t.data = torch.ones(3); yield
def swap(t):
    torch.utils.swap_tensors(t, torch.ones(3)); yield
def grown(t):
    try: t.resize_(N * 8)
    except RuntimeError: yield
def out(t):
    try: torch.add(torch.ones(N * 8), 1, out=t)
    except RuntimeError: yield
def emptied(t):
    try: t.untyped_storage().resize_(0)
    except RuntimeError: yield
def dropped(t):
    yield

N = 1 << 20
for convert in (nd.to_numpy, lambda t: nd.to_numpy([t])[0], lambda t: _bridge.alias(t, writable=True)):
    for move in (moved, data, swap, grown, out, emptied, dropped):
        tensor = torch.full((N,), 7.0)
        array = convert(tensor)
        assert list(move(tensor)) == [None], move
        del tensor
        gc.collect()
        filler = [torch.zeros(N) for _ in range(3)]
        assert array.min() == array.max() == 7, move
        array[:] = 8
        assert array.sum() == 8 * N, move
print("ok")
"""


def test_no_operation_on_the_tensor_takes_the_memory_away() -> None:
    assert run(MOVES) == "ok\n"


def test_no_operation_on_the_tensor_resizes_the_array() -> None:
    array = np.zeros(4)
    tensor = nd.to_torch(array)
    with pytest.raises(RuntimeError):
        tensor.resize_(1000)
    with pytest.raises(ValueError, match="resize"):
        array.resize(1000)


EXIT = """
import atexit, gc, os, threading, numpy as np, torch, ndtorch as nd
gc.disable()
array, tensor = np.zeros(10), torch.zeros(10)
global_tensor, global_array = nd.to_torch(array), nd.to_numpy(tensor)
cycle = [nd.to_torch(np.zeros(10)), nd.to_numpy(torch.zeros(10))]
cycle.append(cycle)
del cycle
chain = nd.to_numpy(nd.to_torch(np.zeros(3)))
torch.kept_by_a_module = nd.to_torch(np.zeros(10))
late = [nd.to_torch(np.zeros(10))]
atexit.register(late.clear)
atexit.register(lambda: nd.to_numpy(nd.to_torch(np.zeros(4))))

class Dies:
    def __del__(self): nd_to_torch(array_of(3));
nd_to_torch, array_of, dies = nd.to_torch, np.zeros, Dies()

pid = os.fork()
if pid == 0:
    assert nd.to_numpy(nd.to_torch(array)).sum() == global_tensor.sum() == 0
    del global_tensor
    raise SystemExit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print("ok", flush=True)
"""


def test_exit_and_fork_are_quiet() -> None:
    assert run(EXIT) == "ok\n"


# ---- the proof at import ----

BROKEN = """
import sys, types
package = types.ModuleType("ndtorch")  # without the package's own imports
package.__path__ = PATH
sys.modules["ndtorch"] = package
import numpy as np, torch
from ndtorch import _native

real, kept = _native.accelerate, []

def breaking(name, broken):
    def accelerate(which, module, slow, inside, doc):
        convert = real(which, module, slow, inside, doc)
        return (lambda source: broken(convert, source)) if which == name else convert
    return {"accelerate": accelerate}

def on_single(f):
    return lambda convert, x: convert(x) if isinstance(x, list) or convert(x) is None else f(convert, x)

def keep(convert, x):
    kept.append(convert(x))
    return convert(x)

def unpinned(convert, tensor):
    class Holder:
        __array_interface__ = {"version": 3, "shape": tuple(tensor.shape), "typestr": "<f8",
            "data": (tensor.data_ptr(), False), "strides": tuple(s * 8 for s in tensor.stride())}
        storage = tensor.untyped_storage()
    return np.asarray(Holder()) if tensor.dtype is torch.float64 else convert(tensor)

def writable(convert, x):
    array = convert(x)
    return array.copy() if not array.flags.writeable else array

cases = {
    "copies": breaking("to_torch", on_single(lambda c, a: c(a.copy()))),
    "values": breaking("to_torch", on_single(lambda c, a: c(a).add_(1).clone())),
    "leaks an array": breaking("to_torch", on_single(keep)),
    "strides": breaking("to_torch", on_single(lambda c, a: c(a).as_strided((2, 2, 3), (12, 4, 1)))),
    "takes all": breaking("to_torch", lambda c, a: torch.zeros(1) if c(a) is None else c(a)),
    "no api": {"enable_to_torch": lambda: "no API"},
    "unpinned": breaking("to_numpy", on_single(unpinned)),
    "leaks a storage": breaking("to_numpy", on_single(keep)),
    "writable": breaking("to_numpy", on_single(writable)),
    "conj": breaking("to_numpy", lambda c, t: np.zeros(1) if not isinstance(t, list) and t.is_conj() else c(t)),
    "neg": breaking("to_numpy", lambda c, t: np.zeros(1) if not isinstance(t, list) and t.is_neg() else c(t)),
    "raises": breaking("to_numpy", lambda c, t: 1 / 0),
    "no shim": {"enable_to_numpy": lambda accelerators: "no shim"},
}
originals = {name: getattr(_native, name) for name in ("accelerate", "enable_to_torch", "enable_to_numpy")}

def to_torch(source): ...
def to_numpy(source): ...

def load():
    sys.modules.pop("ndtorch._bridge", None)
    from ndtorch import _bridge
    return sys.modules["ndtorch._bridge"]

for name, patches in cases.items():
    for attribute, value in {**originals, **patches}.items():
        setattr(_native, attribute, value)
    package.__dict__.pop("_bridge", None)
    bridge = load()
    status = bridge.status()
    assert not status.fast and status.notes, name
    assert bridge.accelerate(to_numpy)(to_numpy) is to_numpy, name
    one_way = list(cases).index(name) >= list(cases).index("unpinned")
    assert (bridge.accelerate(to_torch)(to_torch) is to_torch) != one_way, name
    read_only = np.arange(3.0)
    read_only.flags.writeable = False
    assert bridge.share(read_only).tolist() == [0, 1, 2], name
    assert bridge.alias(torch.ones(2, dtype=torch.bfloat16), writable=False).tolist() == [1, 1], name
for attribute, value in originals.items():
    setattr(_native, attribute, value)
package.__dict__.pop("_bridge", None)
share = _native.share
_native.share = lambda array: None if array.dtype == np.uint32 else share(array)
bridge = load()
assert bridge.status().fast and bridge.status().notes == ("not native: uint32",)
assert share(np.zeros(2, np.uint32)) is None and share(np.zeros(2, np.int32)) is not None
assert bridge.share(np.zeros(2, np.uint32)).dtype is torch.uint32
print("ok")
"""


@only_fast
def test_a_bridge_that_does_not_prove_itself_stays_off() -> None:
    assert run(BROKEN.replace("PATH", repr(list(nd.__path__)))) == "ok\n"


@only_fast
def test_importing_under_any_mode_changes_nothing() -> None:
    code = """
import torch, numpy as np
torch.set_default_device("meta")
torch.set_default_dtype(torch.float64)
with torch.inference_mode():
    import ndtorch as nd
from ndtorch import _bridge
assert _bridge.status().fast, _bridge.status()
torch.set_default_device("cpu")
assert torch.zeros(1).dtype is torch.float64
assert nd.to_numpy(torch.ones(2)).tolist() == [1, 1]
with torch.inference_mode():
    assert nd.to_numpy(torch.ones(2)).tolist() == [1, 1]
print("ok")
"""
    assert run(code) == "ok\n"


# ---- files behind memory ----


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Path, np.memmap]:
    path = tmp_path / "a name\nwith (spaces) and \udcff.bin"
    np.arange(10_000, dtype=np.uint8).tofile(path)
    return path, np.memmap(path, np.uint8, "r", offset=5000)


def test_mapping_at_names_the_file_behind_an_address(mapped) -> None:
    path, array = mapped
    file = os.stat(path)
    name, offset, device, inode, nbytes, shared, writable = _native.mapping_at(address(array) + 100)
    assert (name, offset, device, inode) == (str(path), 5100, file.st_dev, file.st_ino)
    assert nbytes >= 4900
    assert shared
    assert not writable
    path.unlink()
    assert _native.mapping_at(address(array)) is None
    assert _native.mapping_at(address(np.zeros(10**7))) is None
    assert _native.mapping_at(8) is None


def test_a_private_mapping_takes_writes_and_keeps_them_from_the_file(mapped) -> None:
    path, array = mapped
    file = os.stat(path)
    private = _native.map_private(str(path), 5000, 5000, file.st_dev, file.st_ino)
    assert type(private) is np.ndarray
    assert private.dtype == np.uint8
    assert private.flags.writeable
    assert (private == array).all()
    private[:] = 0
    assert array.any()
    view = private[10:]
    del private
    assert not view.any()


def test_a_private_mapping_of_another_file_is_refused(mapped, tmp_path: Path) -> None:
    path, _ = mapped
    file = os.stat(path)
    same = (file.st_dev, file.st_ino)
    assert _native.map_private(str(path), 0, 10_000, *same) is not None
    assert _native.map_private(str(path), 0, 10_001, *same) is None
    assert _native.map_private(str(path), 2**64 - 1, 2, *same) is None
    assert _native.map_private(str(path), 0, 0, *same) is None
    assert _native.map_private(str(path), 0, 10, file.st_dev, file.st_ino + 1) is None
    assert _native.map_private(str(path), 0, 10, file.st_dev + 1, file.st_ino) is None
    assert _native.map_private(str(tmp_path / "none"), 0, 10, *same) is None
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert _native.map_private(str(fifo), 0, 10, os.stat(fifo).st_dev, os.stat(fifo).st_ino) is None


def test_private_mappings_are_given_back(mapped) -> None:
    path, _ = mapped
    file = os.stat(path)
    for _ in range(10):
        private = _native.map_private(str(path), 4096, 10, file.st_dev, file.st_ino)
        where = address(private)
        assert _native.mapping_at(where) is not None
        del private
        assert _native.mapping_at(where) is None


def test_what_forgets_an_owner_runs_no_python_and_so_swallows_no_ctrl_c(monkeypatch):
    monkeypatch.setitem(_bridge._is_native, "to_torch", False)
    tensor = _bridge.share(np.ones(3))
    references = weakref.getweakrefs(tensor.untyped_storage())
    callbacks = [each.__callback__ for each in references if each.__callback__ is not None]
    assert list(map(type, callbacks)) == [types.BuiltinMethodType]
    (owned,) = {*map(id, references)} & {*map(id, _bridge._owners)}
    del tensor
    assert owned not in {*map(id, _bridge._owners)}
