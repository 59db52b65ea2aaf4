"""The lazy array: it reads what is asked for and no more, indexes as NumPy does, and works as what it holds."""

from __future__ import annotations

import math
import operator
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_independent, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ndtorch as nd
from ndtorch._read import LazyArray
from ndtorch.files import open_file
from ndtorch.files.arrays import FileArray, Packed, Stored
from ndtorch.files.indexing import row_major
from ndtorch.files.storage import LocalStorage


class CountingStorage(LocalStorage):
    """Local bytes as if they were far away: never mapped, and it is told how many of them were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.count = 0

    def map(self, offset, nbytes, *, writable=True):
        return None

    def read_into(self, target, offset, *, checksum=False):
        self.count += len(target)
        return super().read_into(target, offset, checksum=checksum)

    def read_runs(self, target, offset, nbytes, step):
        self.count += len(target)
        super().read_runs(target, offset, nbytes, step)


ARRAY = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)


def lazy_of(array: np.ndarray, how: str, folder: Path, to: str = "numpy") -> LazyArray:
    """The same array in a file: mapped, read in parts, or decoded."""
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, array)
    stored = open_file(path, name="x")["x"]
    if how == "mapped":
        return LazyArray(stored, to)
    assert isinstance(stored.layout, Stored)
    if how == "packed":
        layout = Packed(lambda key: array[(*key, ...)].copy(), rows=2)
    else:
        layout = Stored(CountingStorage(path), stored.layout.offset, stored.layout.strides)
    return LazyArray(FileArray("x", "here", stored.dtype, stored.shape, layout), to)


def bytes_read() -> int:
    """Bytes that system calls of this process have read."""
    return int(Path("/proc/self/io").read_text().split()[1])


# --- reading no more than is asked for


def test_opening_and_asking_reads_nothing_of_the_elements(tmp_path):
    nd.write(tmp_path / "a.safetensors", {"x": np.zeros(10_000_000, np.uint8)})
    bytes_read()
    before = bytes_read()
    back = nd.read(tmp_path / "a.safetensors")
    x = back["x"]
    facts = (x.shape, x.dtype, x.nbytes, len(x), repr(x), repr(back), nd.explain(x), pickle.dumps(x))
    mapped = x[...]
    part = x[5:7]
    assert bytes_read() - before < 20_000
    assert facts[0] == mapped.shape == (10_000_000,)
    assert part.tolist() == [0, 0]
    nd.to_torch(x)
    assert bytes_read() - before > 10_000_000


def test_a_slice_of_what_cannot_be_mapped_reads_its_own_bytes_alone(tmp_path):
    lazy = lazy_of(ARRAY, "read", tmp_path)
    storage = lazy.stored.layout.storage
    keys = [(3, 168), ((3, 2), 28), ((3, 2, 1), 4), (slice(1, 3), 336), ((4, slice(2, 4)), 56), (slice(0, 0), 0)]
    for key, expected in keys:
        storage.count = 0
        assert_same(lazy[key], np.asarray(ARRAY[key]))
        assert storage.count == expected, key


def test_iterating_reads_every_byte_once(tmp_path):
    lazy = lazy_of(ARRAY, "read", tmp_path)
    assert_same(np.stack(list(lazy)), ARRAY)
    assert lazy.stored.layout.storage.count == ARRAY.nbytes
    assert [float(x) for x in lazy_of(ARRAY[0, 0], "mapped", tmp_path)] == ARRAY[0, 0].tolist()
    with pytest.raises(TypeError):
        iter(lazy_of(np.array(3), "mapped", tmp_path))
    with pytest.raises(TypeError, match="no dimensions"):
        len(lazy_of(np.array(3), "mapped", tmp_path))


@pytest.mark.parametrize("to", ["torch", "numpy"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_writing_into_what_was_touched_reaches_neither_file_nor_neighbour(suffix, to, tmp_path):
    path = tmp_path / f"x{suffix}"
    nd.write(path, {"x": ARRAY})
    before = path.read_bytes()
    lazy = nd.read(path, to=to)["x"]
    one, other, part = lazy[...], lazy[...], lazy[1:3]
    assert_independent(one, other)
    assert_independent(one, part)
    one[:] = -1
    part[:] = -2
    assert path.read_bytes() == before
    assert float(other.sum()) == float(lazy[...].sum()) == float(ARRAY.sum())
    assert "private" in str(nd.explain(one, to="numpy" if to == "torch" else "torch").reason) or nd.explain(one).shares


# --- every index


HOWS = ("mapped", "read", "packed")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_index_gives_what_numpy_gives(how, order, tmp_path):
    shape = (3, 1, 4, 2)
    array = np.asarray(np.arange(math.prod(shape)).reshape(shape), order=order)
    lazy = lazy_of(array, how, tmp_path)

    @given(hnp.basic_indices(shape, allow_newaxis=True, max_dims=6) | hnp.integer_array_indices(shape[:2]) | boolean)
    @settings(max_examples=80)
    def check(key):
        assert_same(np.asarray(lazy[key]), np.asarray(array[key]))

    check()


boolean = st.sampled_from([True, False, np.True_, np.array([True, False, True]), [0, -1], (..., [1, 0]), np.int8(2)])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5,)])
def test_arrays_of_no_dimension_or_no_element_are_indexed_too(how, shape, tmp_path):
    array = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    lazy = lazy_of(array, how, tmp_path)
    keys = [
        ...,
        (),
        None,
        (..., None),
        slice(None),
        slice(0, 2),
        slice(None, None, -2),
        (slice(None), ...),
        [0],
        -1,
        1.0,
    ]
    for key in keys:
        try:
            expected = np.asarray(array[key])
        except IndexError:
            with pytest.raises(IndexError):
                lazy[key]
        else:
            assert_same(np.asarray(lazy[key]), expected)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "key", [9, -9, (0, 0, 0, 0), (..., ...), "x", 1.5, (0, 99), [99], (slice(None), slice(0, 1, 0))]
)
def test_a_bad_index_is_the_error_of_numpy(how, key, tmp_path):
    lazy = lazy_of(ARRAY, how, tmp_path)
    with pytest.raises((IndexError, ValueError)) as expected:
        ARRAY[key]
    with pytest.raises(expected.type):
        lazy[key]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "array",
    [
        np.array(["Ada", "Bo", "é"]),
        np.array(["2024-02-29", "NaT", "1970-01-01"], "M8[D]"),
        np.array([(1, 2.5), (3, 4), (5, 6)], [("x", "i1"), ("y", ">f8")]),
        np.arange(3.0).astype(">f4"),
        np.array([1, 2j, 3]),
    ],
    ids=lambda a: str(a.dtype),
)
def test_what_torch_has_not_is_given_as_numpy_has_it(how, array, tmp_path):
    lazy = lazy_of(array, how, tmp_path)
    assert_same(lazy[...], array)
    assert_same(lazy[1:], array[1:])
    assert_same(lazy[2], array[2, ...])


@pytest.mark.parametrize(
    "array",
    [np.array(["2024-02-29", "1970-01-01"], "M8[D]"), np.arange(6.0).astype(">f4"), np.asfortranarray(ARRAY), ARRAY],
)
def test_tensors_are_those_of_to_torch(array, tmp_path):
    lazy = lazy_of(array, "mapped", tmp_path, "torch")
    assert_same(lazy[...], nd.to_torch(array), strides=True)
    assert_same(lazy[1:], nd.to_torch(array[1:]))
    assert_same(lazy[::-1], nd.to_torch(array[::-1].copy()))


# --- it works as what it holds

BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge", "eq", "ne")


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("to", ["torch", "numpy"])
def test_operators_work_on_either_side(name, to, tmp_path):
    act = getattr(operator, name)
    lazy = lazy_of(ARRAY % 9 + 1, "mapped", tmp_path, to)
    held = lazy[...]
    for other in (2, held, lazy):
        assert_same(act(lazy, other), act(held, held if other is lazy else other))
    assert_same(act(held, lazy), act(held, held))
    assert_same(act(2, lazy), act(2, held))


@pytest.mark.parametrize("to", ["torch", "numpy"])
def test_other_operators_work(to, tmp_path):
    lazy = lazy_of(np.arange(6), "mapped", tmp_path, to)
    held = lazy[...]
    for act in (operator.neg, operator.pos, abs, operator.invert):
        assert_same(act(lazy), act(held))
    for act in (operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift, operator.matmul):
        assert_same(np.asarray(act(lazy, lazy)), np.asarray(act(held, held)))
        assert_same(np.asarray(act(held, lazy)), np.asarray(act(held, held)))
    assert 5 in lazy
    assert 6 not in lazy
    one = lazy_of(np.array(3), "mapped", tmp_path, to)
    assert (int(one), float(one), complex(one), bool(one), operator.index(one), "abcd"[one]) == (
        3,
        3.0,
        3,
        True,
        3,
        "d",
    )
    assert {lazy: 1}[lazy] == 1
    lazy += 1
    assert_same(lazy, held + 1)


def test_functions_of_torch_take_it(tmp_path):
    lazy = lazy_of(ARRAY, "mapped", tmp_path, "torch")
    held = tensor_holding(ARRAY)
    assert torch.equal(lazy, held)
    assert torch.equal(held, lazy)
    assert torch.allclose(lazy, held)
    assert_same(torch.cat([lazy, held], dim=1), torch.cat([held, held], dim=1))
    assert_same(torch.stack([lazy, lazy]), torch.stack([held, held]))
    assert_same(F.linear(held, lazy[0]), F.linear(held, held[0]))
    assert_same(F.linear(torch.ones(7), lazy_of(ARRAY[0], "mapped", tmp_path, "torch")), held[0].sum(1))
    assert_same(lazy.mean(dim=0), held.mean(dim=0))
    assert_same(torch.empty(5, 6, 7).copy_(lazy_of(ARRAY, "mapped", tmp_path, "torch")), held)
    assert (lazy.device, lazy.is_contiguous(), lazy.numel()) == (held.device, True, 210)
    assert lazy.to(torch.float64).dtype == torch.float64
    assert lazy.requires_grad_().requires_grad
    assert not hasattr(lazy, "no_such_name")


def test_functions_of_numpy_take_it(tmp_path):
    lazy = lazy_of(ARRAY, "mapped", tmp_path)
    assert_same(np.asarray(lazy), ARRAY)
    assert_same(np.array(lazy, np.float64), ARRAY.astype(np.float64))
    assert_same(np.concatenate([lazy, ARRAY]), np.concatenate([ARRAY, ARRAY]))
    assert_same(np.sin(lazy), np.sin(ARRAY))
    assert_same(np.add(ARRAY, lazy), ARRAY + ARRAY)
    assert_same(np.add.reduce(lazy), np.add.reduce(ARRAY))
    assert_same(np.mean(lazy, axis=1), np.mean(ARRAY, axis=1))
    assert_same(np.sort(lazy), np.sort(ARRAY))
    assert_same(ARRAY[lazy_of(np.array([2, 0]), "mapped", tmp_path)], ARRAY[[2, 0]])
    assert_same(np.array(lazy, copy=True), ARRAY)
    assert_independent(np.array(lazy, copy=True), lazy[...])


IN_PLACE = {
    "method of torch": ("torch", lambda x: x.add_(1), AttributeError),
    "fill of torch": ("torch", lambda x: x.zero_(), AttributeError),
    "function of torch": ("torch", lambda x: torch.relu_(x), nd.UnsupportedTypeError),
    "out of torch": ("torch", lambda x: torch.add(ARRAY[0, 0, 0].item(), torch.ones(5, 6, 7), out=x), None),
    "init of torch": ("torch", lambda x: torch.nn.init.zeros_(x), Exception),
    "item": ("torch", lambda x: operator.setitem(x, 0, 1), TypeError),
    "method of numpy": ("numpy", lambda x: x.sort(), AttributeError),
    "fill of numpy": ("numpy", lambda x: x.fill(0), AttributeError),
    "out of numpy": ("numpy", lambda x: np.add(ARRAY, ARRAY, out=x), nd.UnsupportedTypeError),
    "at of numpy": ("numpy", lambda x: np.add.at(x, 0, 1), nd.UnsupportedTypeError),
    "copyto of numpy": ("numpy", lambda x: np.copyto(x, 0), TypeError),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_would_write_to_the_file_is_refused_not_lost(kind, tmp_path):
    to, act, error = IN_PLACE[kind]
    lazy = lazy_of(ARRAY, "mapped", tmp_path, to)
    with pytest.raises(error or (nd.UnsupportedTypeError, TypeError)):
        act(lazy)


def test_the_refusal_of_a_write_names_the_way(tmp_path):
    lazy = lazy_of(ARRAY, "mapped", tmp_path, "torch")
    with pytest.raises(AttributeError) as error:
        lazy.add_(1)
    assert str(error.value) == "'x' is in a file, which is never written. Hint: tensor = array[...]; tensor.add_(...)"
    with pytest.raises(nd.UnsupportedTypeError) as refused:
        np.add(ARRAY, ARRAY, out=lazy)
    assert str(refused.value) == (
        "read: add cannot write to 'x': it is in a file, which is never written. "
        "Hint: array[...] is memory of your own."
    )


# --- streaming


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_are_the_elements_in_order_whatever_the_sizes(how, order, tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch.files.arrays.BLOCK", 64)
    monkeypatch.setattr("ndtorch.files.arrays._SLAB", 256)

    @given(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), st.sampled_from(["i1", "f8", "S300"]))
    @settings(max_examples=80)
    def check(shape, dtype):
        array = np.asarray(np.arange(math.prod(shape)).astype(dtype).reshape(shape), order=order)
        stored = lazy_of(array, how, tmp_path).stored
        blocks = [block.copy() for block in stored.blocks()]
        assert all(block.nbytes <= max(256, array.itemsize) and block.dtype == array.dtype for block in blocks)
        joined = np.concatenate([np.empty(0, array.dtype), *blocks])
        assert_same(joined, array.reshape(-1))

    check()


def test_memory_of_a_transposing_stream_is_bounded_whatever_the_shape(tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch.files.arrays.BLOCK", 256)
    monkeypatch.setattr("ndtorch.files.arrays._SLAB", 1024)
    asked = []
    monkeypatch.setattr("ndtorch.files.arrays.empty", lambda n: asked.append(n) or np.empty(n, np.uint8))
    for shape in [(2, 50, 40), (100, 3, 5), (3, 5, 100), (1, 1, 4000), (60, 60), (7, 2, 3, 80)]:
        array = np.asfortranarray(np.arange(math.prod(shape), dtype="f8").reshape(shape))
        assert_same(
            np.concatenate([b.copy() for b in lazy_of(array, "read", tmp_path).stored.blocks()]), array.reshape(-1)
        )
    assert max(asked) <= 1024


def test_sizes_that_no_array_has_are_refused_where_a_header_is_read():
    for shape in [(2**62, 2), (0, 2**62, 2), (1,) * 65, (2**63,)]:
        with pytest.raises(nd.FormatError, match="larger than any array"):
            FileArray("x", "here", np.dtype("f4"), shape, Packed(lambda key: np.empty(0)))
    assert row_major((2, 3), 8) == (24, 8)


def test_a_strided_layout_is_selected_and_streamed(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(24, dtype="i4"))
    whole = open_file(tmp_path / "x.npy")["x"]
    stored = FileArray("x", "here", whole.dtype, (3, 2), Stored(whole.layout.storage, whole.layout.offset, (32, 8)))
    expected = np.arange(24, dtype="i4").reshape(3, 8)[:, :4:2]
    assert stored.order == "strided"
    for found in (stored.map(), stored.read(), stored.select(...), np.concatenate(list(stored.blocks())).reshape(3, 2)):
        assert_same(np.asarray(found), expected)
