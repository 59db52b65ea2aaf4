"""Copies and casts of numbers, held against NumPy's own: values, layouts, sizes, threads, forks and Ctrl-C.

The oracle of a cast is `array.astype`, which rounds once to float16 and by way of float32 to the formats of ml_dtypes.
It has no word on floats outside an integer's range, where the hardware decides, so none are given; and none on
float8_e8m0fnu to and from another float8, where float32 in between is exact.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from comparison import array_holding, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, SHAREABLE, UNSHAREABLE, any_values, can_be, dtypes, filled, pitched

import ndtorch as nd

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **SHAREABLE,
    **UNSHAREABLE,
    "all reversed": lambda a: np.flip(np.array(np.flip(a))),
    "transposed and reversed": lambda a: np.array(a.T[::-1])[::-1].T,
    "unaligned every other": lambda a: pitched(a, a.itemsize * 2, 1),
}
SIDES = [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129]
CASTS = [("uint8", "float32"), ("float64", "float32"), ("float32", "bfloat16"), ("int64", "float32")]
CASTS += [("int16", "float16"), ("float64", "uint8"), ("float16", "float64"), ("float32", "int64"), ("int8", "bool")]
PLAIN = [(name, name) for name in ("uint8", "int16", "float32", "float64", "complex128")]


def of(name: str) -> np.dtype:
    return DTYPES[name][0]


def cast(array: np.ndarray, target: np.dtype) -> np.ndarray:
    """What NumPy makes of an array."""
    real = array.real if array.dtype.kind == "c" and target.kind not in "bc" else array
    with np.errstate(all="ignore"):
        if "float8" in real.dtype.name and "float8" in target.name:
            real = real.astype(np.float32)
        return real.astype(target, order="C")


def unsafe(source: np.ndarray | torch.Tensor, target: np.dtype | str) -> np.ndarray:
    return nd.to_numpy(source, copy=True, dtype=target, casting="unsafe")


def assert_copied(array: np.ndarray, target: np.dtype, like: np.ndarray | None = None) -> None:
    """Fail unless array and tensor both become what NumPy makes of ``array`` (or of its plain twin ``like``)."""
    expected = cast(array if like is None else like, target)
    before = array.tobytes()
    tensor = nd.to_torch(array, copy=True, dtype=target, casting="unsafe")
    assert_same(nd.to_numpy(tensor), expected)
    assert tensor.is_contiguous() or 0 in array.strides
    assert_same(unsafe(array, target), expected)
    assert array.tobytes() == before, "the source was written"


def castable(array: np.ndarray, target: np.dtype) -> np.ndarray:
    """The same array, with small numbers where it goes beyond an integer's range."""
    if array.dtype.kind in "biu" or target.kind not in "iu":
        return array
    limits, real = np.iinfo(target), cast(array, of("float64"))
    fits = (real > limits.min - 1.0) | (real == limits.min)
    small = (np.arange(array.size) % 89 + 1).reshape(array.shape).astype(array.dtype)
    return np.where(fits & (real < limits.max + 1.0), array, small)


@cache
def values(dtype: np.dtype) -> np.ndarray:
    """Every value of the short formats; of the others the limits of all formats, what is special, ties and any bits."""
    if dtype.kind == "b" or dtype.itemsize <= 2:
        return np.arange(2 if dtype.kind == "b" else 256**dtype.itemsize).astype(f"u{dtype.itemsize}").view(dtype)
    powers = [sign * (2**k + d) for k in range(65) for d in (-1, 0, 1, 2 ** max(k - 24, 0) + 1) for sign in (1, -1)]
    some = any_values(dtype, (500,), 7)
    if dtype.kind in "iu":
        fitting = [power for power in powers if np.iinfo(dtype).min <= power <= np.iinfo(dtype).max]
        return np.concatenate([np.array(fitting, dtype), some])
    part = np.dtype(f"f{dtype.itemsize // 2}" if dtype.kind == "c" else dtype)
    special = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, 2.0**-149, -(2.0**-1022), 1e-310, 1e300]
    with np.errstate(all="ignore"):
        parts = np.concatenate([special, np.array(powers, float), ties()]).astype(part)
    if dtype.kind == "c":
        parts = np.stack([parts, parts[::-1]], axis=-1).view(dtype)[:, 0]
    return np.concatenate([parts, some])


@cache
def ties() -> np.ndarray:
    """Halfway between neighbours of every narrower format, a hair to both sides, subnormals and overflow too."""
    single = any_values(of("float32"), (300,), 3)
    single = single[abs(single) < 3e38].astype("f8")
    found = [single + np.spacing(single.astype("f4")).astype("f8") / 2]
    for dtype in (of(name) for name in DTYPES if "float" in name and of(name).itemsize <= 2):
        finite = cast(values(dtype), of("float64"))
        known = np.unique(finite[np.isfinite(finite)])
        middle = (known + np.append(known[1:], 2 * known[-1] - known[-2])) / 2
        found += [middle[:: len(known) // 250 + 1], middle[-2:], middle[np.argsort(abs(middle), stable=True)[:9]]]
    middle = np.concatenate(found)
    return np.unique([middle, *(middle * (1 + s * 2.0**-k) for k in (15, 22, 23, 29, 40, 52) for s in (1, -1))])


def survives(array: np.ndarray, target: np.dtype) -> np.ndarray:
    """Where a value equals what it becomes by Python's comparison of numbers, which never rounds; NaN equals NaN."""
    part = np.empty(0, target).real.dtype
    if array.dtype.kind == "c":
        return survives(array.real, part) & (survives(array.imag, part) if target.kind == "c" else array.imag == 0)
    before, after = (cast(x, of("float64")) if "float" in x.dtype.name else x for x in (array, cast(array, part)))
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        equal = before.astype(object) == after.astype(object)
    return np.asarray(equal | (np.isnan(before) & np.isnan(after)), bool)


def assert_exact(array: np.ndarray, target: np.dtype, kept: np.ndarray | None = None) -> None:
    """Fail unless exactly what survives is let through, and else the first loss in row-major order is named."""
    kept = survives(array, target) if kept is None else kept
    for convert in (nd.to_torch, nd.to_numpy):
        if kept.all():
            assert_same(nd.to_numpy(convert(array, dtype=target, casting="exact", copy=True)), cast(array, target))
            continue
        with pytest.raises(nd.LossyCastError) as caught:
            convert(array, dtype=target, casting="exact")
        assert caught.value.index == tuple(int(i) for i in np.unravel_index(np.argmin(kept), kept.shape))
        assert_same(caught.value.value, array[caught.value.index])


@pytest.fixture(params=[1, 4], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_every_value_becomes_what_numpy_makes_of_it_and_is_proved(source: str, target: str) -> None:
    array = castable(values(of(source)), of(target))
    assert_copied(array, of(target))
    assert_copied(array[1:2].reshape(()), of(target))
    assert_same(unsafe(tensor_holding(array), target), cast(array, of(target)))
    some = np.resize(array[:: len(array) // 5000 + 1], (min(len(array), 5000) // 7 + 2, 7))
    for layout in ("every other item", "transposed", "all reversed", "other byte order", "unaligned every other"):
        if can_be(layout, some.dtype):
            assert_copied(LAYOUTS[layout](some), of(target), some)
    some = values(of(source))[:: len(values(of(source))) // 600 + 1]
    kept = survives(some, of(target))
    for mixed in (some[kept], some[kept][::-1], np.concatenate([some[kept], some[~kept]]), some, some[::-2]):
        assert_exact(mixed, of(target))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", DTYPES)
def test_every_layout_is_read_right(source: str, layout: str) -> None:
    laid_out = LAYOUTS[layout if can_be(layout, of(source)) else "transposed and reversed"]
    for shape in ((2, 2), (3, 65), (66, 7), (2, 3, 4, 5), (1, 64, 1, 9), (130, 1)):
        plain = any_values(of(source), shape, 5)
        array = laid_out(plain)
        assert array_holding(nd.to_torch(array, copy=True)).tobytes() == plain.tobytes(), "NaN has lost its bits"
        for target in (of("float32"), of("bool"), of("complex128"), of(source).newbyteorder("S")):
            assert_same(unsafe(array, target), cast(plain, target))


@pytest.mark.parametrize("pair", [*((name, name) for name in DTYPES), *CASTS], ids="-".join)
def test_every_small_size_and_transpose_is_copied_whole(pair: tuple[str, str]) -> None:
    whole = castable(any_values(of(pair[0]), (130, 131), 1), of(pair[1]))
    row, target = whole.ravel(), of(pair[1])
    for size in range(131):
        for array in (row[1 : size + 1], row[: size * 3 : 3], row[5 : 5 + size][::-1]):
            assert_same(nd.to_numpy(nd.to_torch(array, copy=True, dtype=target, casting="unsafe")), cast(array, target))
    for rows, columns in itertools.product(SIDES, SIDES) if pair in PLAIN + CASTS else [(3, 0)]:
        assert_same(unsafe(whole[:rows, :columns].T, target), cast(whole[:rows, :columns].T, target))
    assert_same(unsafe(tensor_holding(whole).T, target), cast(whole.T, target))


@pytest.mark.parametrize("pair", [PLAIN[0], PLAIN[3], *CASTS[:6]], ids="-".join)
def test_copies_large_enough_for_threads_are_whole(pair: tuple[str, str], threads: int) -> None:
    source = castable(any_values(of(pair[0]), (1_500_007,), 3), of(pair[1]))
    grid, cube = source[: 1223 * 1225].reshape(1223, 1225)[:, :1201], source[: 101 * 103 * 107].reshape(101, 103, 107)
    views = [source, source[::-1], source[1::2], grid.T, grid[::-1, ::3], cube.transpose(1, 2, 0), cube.T]
    views += [LAYOUTS[name](source) for name in ("unaligned", "other byte order") if can_be(name, source.dtype)]
    for array in (*views, np.broadcast_to(grid[0], grid.shape), np.broadcast_to(source[:3, None], (3, 400_003))):
        assert_copied(array, of(pair[1]))
    assert_same(unsafe(tensor_holding(cube).permute(2, 0, 1), pair[1]), cast(cube.transpose(2, 0, 1), of(pair[1])))


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[np.ndarray, np.dtype]:
    """An array of any shape, order of axes, steps, pitch, alignment and byte order, and what to cast it to."""
    dtype, target = draw(dtypes()), draw(dtypes())
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 9, 17, 64, 65]), max_size=6))
    while np.prod(shape) > 5000:
        shape.pop()
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    order = draw(st.permutations(range(len(shape))))
    whole = [shape[axis] * abs(steps[axis]) for axis in order]
    numbers = filled(dtype, whole) if draw(st.booleans()) else any_values(dtype, whole, draw(st.integers(0, 99)))
    numbers = castable(numbers, target).astype(draw(st.sampled_from([dtype, dtype.newbyteorder("S")])))
    if draw(st.booleans()):
        numbers = pitched(numbers, dtype.itemsize + draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    array = numbers.transpose(np.argsort(order))[(*(slice(None, None, step) for step in steps), ...)]
    repeated = draw(st.sampled_from([None, None, *range(array.ndim)]))
    if array.size and repeated is not None:
        array = np.broadcast_to(array[(slice(None),) * repeated + (slice(1),)], array.shape)
    return array, target


@settings(max_examples=400)
@given(laid_out())
def test_any_array_is_copied_and_proved_as_numpy_would(drawn: tuple[np.ndarray, np.dtype]) -> None:
    assert_copied(*drawn)
    assert_exact(*drawn)


EDGES = {
    "float64 int64": [2.0**63, 2.0**63 - 1024, -(2.0**63), -(2.0**63) - 2048, 0.5, -0.0, np.nan, -np.inf],
    "float64 uint64": [2.0**64, 2.0**64 - 2048, 2.0**63, -1.0],
    "float64 float16": [65520, 65519, 65504, 2.0**-24, 2.0**-25, 1 + 2.0**-11, np.nan],
    "float64 float32": [5e-324, 2.0**-149, 1e39, 2.0**24 + 1, -np.inf],
    "float32 uint8": [256, 255, -1, 255.5, np.inf],
    "int64 float64": [2**53 + 1, 2**53, 2**63 - 1, -(2**63)],
    "uint64 int64": [2**63, 2**64 - 1],
    "int64 uint64": [-1],
    "int16 uint8": [256, 255, -1],
    "complex128 float32": [1j, complex(0, np.nan), complex(2, -0.0), complex(np.nan, 0)],
}


@pytest.mark.parametrize("pair", EDGES)
def test_exact_knows_the_edges_wherever_they_lie(pair: str) -> None:
    source, target = map(of, pair.split())
    for value, place in itertools.product(EDGES[pair], range(35)):
        array = np.ones(35, source)
        array[place] = value
        assert_exact(array, target)
        assert_exact(LAYOUTS["reversed items"](array)[3:], target)


@pytest.mark.parametrize("layout", ["row-major", "all reversed", "transposed", "other byte order", "every other item"])
@pytest.mark.parametrize(("pair", "loss"), [(("float64", "int32"), 0.5), (("int64", "float32"), 2**24 + 1)])
def test_first_loss_in_a_large_array_is_named(pair: tuple[str, str], loss: float, layout: str, threads: int) -> None:
    half = 1501 * 2003 // 2
    for places in ([-1], [-2, half + 5], [half, half + 1], [half + half // 2, half // 2, half // 2 + 1], []):
        array = np.arange(1501 * 2003).reshape(1501, 2003).astype(pair[0])
        array.flat[places] = loss
        assert_exact(LAYOUTS[layout](array), of(pair[1]), array != loss)


# ---- the life of a process ----

LIFE = """
import os, signal, sys, threading, warnings
import numpy as np, torch
import ndtorch as nd
warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that has threads: that is the point here
source = np.random.default_rng(0).integers(0, 2**31, 1_000_007).astype(float)
grid, lossy = source[: 812 * 1201].reshape(812, 1201), np.where(np.arange(1_000_007) % 400_001, source, 0.5)[1:]

def check():
    for array in (source[::-1], source[1::2], grid.T):
        assert (nd.to_torch(array, copy=True).numpy() == array).all()
        assert (nd.to_torch(array, dtype="float32").numpy() == array.astype("f4")).all()
    try:
        first = nd.to_numpy(lossy, dtype="int64", casting="exact")
    except nd.LossyCastError as error:
        first = error.index
    assert first == (400_000,)
"""

FORK = """
def fork(leave):
    pid = os.fork()
    if pid == 0:
        signal.alarm(240)  # a child that waits for threads it has not inherited dies instead
        check()
        leave(3)
    assert (status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) == 3, status

def row(i):
    torch.set_num_threads(1 + i)
    check()
    return nd.to_torch(grid[:, i::4].T, dtype="float32")

fork(sys.exit)
check()
torch.rand(3_000_000).add(1)  # now torch has threads too
fork(sys.exit)
torch.set_num_threads(4)  # from here on torch's own pool dies in a child that runs C's exit handlers
stop = threading.Event()
thread = threading.Thread(target=lambda: [check() for _ in iter(stop.is_set, True)])
thread.start()
for _ in range(3):
    fork(os._exit)
stop.set()
thread.join()
loader = torch.utils.data.DataLoader(range(4), None, num_workers=2, collate_fn=row, timeout=300)
assert all((rows.numpy() == grid[:, i::4].T.astype("f4")).all() for i, rows in enumerate(loader))
"""

CTRL_C = """
large, wide = np.ones(1 << 27, np.uint8), np.ones((1 << 12, 1 << 12))
kill = lambda: threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
for convert in (
    lambda: nd.to_torch(large, dtype="float32"),
    lambda: nd.to_numpy(wide.T, dtype="int64", casting="exact"),
    lambda: nd.to_torch(wide[::-1], copy=True),
):
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kill()
        while True:  # the signal comes within one of these, wherever that is
            convert()
    except KeyboardInterrupt:
        check()
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append(check()))  # converts within the conversion, which then goes on
    kill()
    result = None
    while not seen or result is None:  # on a busy machine the signal may come before the first
        result = convert()
    assert (result == 1).all()
"""


@pytest.mark.parametrize("story", [FORK, CTRL_C], ids=["forks and workers", "Ctrl-C"])
def test_copies_go_on_after(story: str) -> None:
    command = [sys.executable, "-W", "error", "-c", LIFE + story + "print('alive')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_eight_threads_at_once_do_not_disturb_each_other(threads: int) -> None:
    def work(number: int) -> None:
        array = np.arange(1_200_011.0)[::-1][number:]
        assert_copied(array[::-2], of("float32"))
        assert_copied(array[: 1000 * 1100].reshape(1000, -1).T, of("float64"))
        array[-1 - number * 1000] = 0.5
        assert_exact(array, of("int64"), array != 0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
