"""What a loader is given: each leaf becomes a column, and a batch is what `to_torch` makes of the rows picked."""

from __future__ import annotations

import collections
import gc
import os
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import optree
import pytest
import torch
from comparison import assert_independent, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, SHAREABLE, UNSHAREABLE, arrays, can_be, filled, tensors
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

import ndtorch as nd
from ndtorch import _bridge

BATCH = 3


def batches(data: Any, batch_size: int = BATCH, **options: Any) -> list[Any]:
    return list(nd.Loader(data, batch_size, threads=0, **options))


def orders(n: int, batch_size: int = BATCH, **options: Any) -> list[np.ndarray]:
    """The rows of each batch: the order depends on the number of rows alone."""
    return [batch.numpy() for batch in nd.Loader(torch.arange(n), batch_size, threads=0, **options)]


def taken(data: Any, rows: np.ndarray, **options: Any) -> Any:
    return nd.to_torch(optree.tree_map(lambda leaf: leaf[rows], data), **options)


# ---- against NumPy ----


@st.composite
def structures(draw: st.DrawFn) -> Any:
    """A structure of arrays of one length, of any layout and dtype."""
    leaves = [array for array in (draw(arrays()) for _ in range(draw(st.integers(1, 3)))) if array.ndim]
    length = min(map(len, leaves), default=0)
    leaves = [leaf[:length] for leaf in leaves] or [np.zeros(length)]
    shape = draw(st.sampled_from(["one", "tuple", "dict", "nested"]))
    if shape == "one":
        return leaves[0]
    if shape == "tuple":
        return tuple(leaves)
    named = {f"leaf {i}": leaf for i, leaf in enumerate(leaves)}
    return named if shape == "dict" else {"inner": (leaves[0], named)}


@settings(max_examples=250)
@given(structures(), st.integers(1, 4), st.booleans(), st.sampled_from([None, "float16", "bfloat16", "float64"]))
def test_batch_is_what_to_torch_makes_of_the_rows(data: Any, size: int, shuffle: bool, float_dtype: Any) -> None:
    leaves = optree.tree_leaves(data)
    before = [(leaf.tobytes(), leaf.flags.num, leaf.strides) for leaf in leaves]
    found = batches(data, size, shuffle=shuffle, float_dtype=float_dtype)
    rows = orders(len(leaves[0]), size, shuffle=shuffle)
    assert len(found) == len(rows)
    for batch, picked in zip(found, rows, strict=True):
        with np.errstate(all="ignore"):
            assert_same(batch, taken(data, picked, float_dtype=float_dtype))
    assert [(leaf.tobytes(), leaf.flags.num, leaf.strides) for leaf in leaves] == before


@settings(max_examples=150)
@given(tensors(), st.booleans(), st.sampled_from([None, "float32"]))
def test_rows_of_a_tensor_come_as_index_select_gives_them(source: torch.Tensor, shuffle: bool, cast: Any) -> None:
    if not source.ndim:
        source = source[None]
    for batch, picked in zip(
        batches(source, shuffle=shuffle, float_dtype=cast), orders(len(source), shuffle=shuffle), strict=True
    ):
        plain = tensor_holding(nd.to_numpy(source)[picked])
        assert not batch.requires_grad
        assert not batch.is_conj()
        assert_same(batch, plain if cast is None else nd.to_torch(plain, float_dtype=cast))


@pytest.mark.parametrize("name", DTYPES)
def test_every_layout_of_every_dtype_gives_the_same_rows(name: str) -> None:
    array = filled(DTYPES[name][0], (7, 2, 3))
    expected = [tensor_holding(array[rows]) for rows in orders(7, shuffle=True)]
    for layout, lay_out in {**SHAREABLE, **UNSHAREABLE}.items():
        if can_be(layout, array.dtype):
            assert_same(batches(lay_out(array), shuffle=True), expected, strides=True)


def test_broadcast_rows_come_out_dense() -> None:
    array = np.broadcast_to(np.arange(3), (5, 3))
    for batch in batches(array):
        assert batch.is_contiguous()
    assert_same(torch.cat(batches(array)), torch.arange(3).repeat(5, 1))


# ---- memory ----

SHARED: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda a: a,
    "reversed": lambda a: a[::-1],
    "a field of records": lambda a: a.view([("x", a.dtype), ("y", a.dtype)])["y"],
    "records": lambda a: a.view([("x", a.dtype), ("y", a.dtype)]),
    "other byte order": lambda a: a.view(a.dtype.newbyteorder("S")),
    "transposed": lambda a: a.T,
    "read-only": lambda a: np.lib.stride_tricks.as_strided(a, writeable=False),
    "tensor": lambda a: torch.from_numpy(a),
    "tensor that requires grad": lambda a: torch.from_numpy(a).requires_grad_(),
    "list": list,
    "dataset of tensors": lambda a: TensorDataset(torch.from_numpy(a)),
    "memoryview": memoryview,
}


@pytest.mark.parametrize("kind", SHARED)
def test_source_is_not_copied_as_a_whole(kind: str) -> None:
    array = np.arange(8.0).reshape(4, 2)
    loader = nd.Loader(SHARED[kind](array), 4, threads=0)
    before = list(loader)
    array += 1
    with pytest.raises(AssertionError):
        assert_same(list(loader), before)


@pytest.mark.parametrize("source", [np.arange(6.0), torch.arange(6.0)], ids=["array", "tensor"])
def test_batch_is_memory_of_its_own(source: Any) -> None:
    (batch,) = batches(source, 6)
    assert_independent(batch, source)


def test_source_lives_as_long_as_its_loader() -> None:
    array = np.arange(1000.0)
    alive = weakref.ref(array)
    loader = nd.Loader((array[::-1], [1] * 1000), 1000, threads=0)
    expected = torch.from_numpy(array[::-1].copy())
    del array
    gc.collect()
    assert alive() is not None
    ((batch, _),) = loader
    assert_same(batch, expected)
    del loader, batch
    gc.collect()
    assert alive() is None


@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")
def test_shape_of_an_array_may_change_while_a_loop_runs() -> None:
    array = np.arange(12).reshape(6, 2)
    loop = iter(nd.Loader(array, 2, threads=0))
    first = next(loop)
    array.shape = (12,)
    with pytest.raises(ValueError, match=r"resize|references"):
        array.resize(3)
    assert_same([first, *loop], [torch.arange(12).reshape(6, 2)[i : i + 2] for i in (0, 2, 4)])


def test_list_may_change_while_a_loop_runs() -> None:
    texts, numbers = ["a", "b", "c"], [np.ones(1), np.zeros(1), np.ones(1)]
    loop = iter(nd.Loader((texts, numbers), 3, threads=0))
    texts.clear()
    numbers.clear()
    assert_same(next(loop), (["a", "b", "c"], torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)))


def test_tensor_that_torch_moves_is_an_error_and_the_next_loop_finds_it() -> None:
    tensor = torch.arange(6.0)
    loader = nd.Loader(tensor, 2, threads=0)
    loop = iter(loader)
    assert_same(next(loop), torch.tensor([0.0, 1.0]))
    tensor.share_memory_()
    with pytest.raises(nd.NdtorchError, match="torch has moved"):
        next(loop)
    tensor += 1
    assert_same(torch.cat(list(loader)), torch.arange(1.0, 7.0))


def test_a_tensor_that_another_loop_has_found_again_is_an_error_in_the_loop_that_began_before() -> None:
    tensor = torch.arange(6.0)
    loader = nd.Loader(tensor, 2, threads=0, prefetch=0)
    first, same = iter(loader), iter(loader)
    assert_same([next(first), next(same)], [torch.tensor([0.0, 1.0])] * 2)
    tensor.share_memory_()
    assert_same(next(iter(loader)), torch.tensor([0.0, 1.0]))
    for loop in (first, same):
        with pytest.raises(nd.NdtorchError, match="torch has moved"):
            next(loop)
    assert_same(torch.cat(list(loader)), torch.arange(6.0))


def uint8_pictures() -> list[torch.Tensor]:
    return [torch.full((4, 5, 3), i, dtype=torch.uint8) for i in range(6)]


LISTS_OF_TENSORS: dict[str, tuple[Callable[[], list[torch.Tensor]], dict[str, Any]]] = {
    "equal": (lambda: [torch.full((9,), float(i)) for i in range(6)], {}),
    "ragged": (lambda: [torch.full((9 + i,), float(i)) for i in range(6)], {}),
    "cast": (lambda: [torch.full((9 + i,), float(i)) for i in range(6)], {"float_dtype": "float64"}),
    "of any shape": (lambda: [torch.full((2 + i, 9 - i), float(i)) for i in range(6)], {}),
    "padded": (lambda: [torch.full((9 + i,), float(i)) for i in range(6)], {"pad_value": -1}),
    "views of one": (lambda: list(torch.arange(12.0).reshape(6, 2).unbind()), {}),
    "pictures": (uint8_pictures, {"image": True}),
    "pictures as planes": (uint8_pictures, {"image": {"dtype": "uint8", "scale": False}}),
    "pictures of any size": (lambda: [picture[: 2 + i] for i, picture in enumerate(uint8_pictures())], {"image": True}),
}


@pytest.mark.parametrize("kind", LISTS_OF_TENSORS)
@pytest.mark.parametrize("in_dict", [False, True], ids=["list", "dicts"])
def test_tensors_of_a_list_that_torch_moves_are_an_error_and_the_next_loop_finds_them(kind: str, in_dict: bool) -> None:
    make, options = LISTS_OF_TENSORS[kind]
    tensors, expected = make(), make()
    for tensor in expected:
        tensor += 1

    def loader_of(tensors: list[torch.Tensor]) -> nd.Loader:
        return nd.Loader([{"x": tensor} for tensor in tensors] if in_dict else tensors, 2, threads=0, **options)

    loader = loader_of(tensors)
    loop = iter(loader)
    next(loop)
    for tensor in tensors:
        tensor.share_memory_()
        tensor += 1
    with pytest.raises(nd.NdtorchError, match="torch has moved") as raised:
        next(loop)
    assert raised.value.__notes__[0] == ("at row 2 of data['x']" if in_dict else "at row 2 of data")
    assert_same(list(loader), list(loader_of(expected)))


def test_a_tensor_of_a_list_that_torch_moves_while_it_is_gathered_is_an_error() -> None:
    tensors = [torch.full((9,), float(i)) for i in range(6)]
    (column,) = nd.Loader(tensors, 2)._sources.columns

    def allocate_and_move(shape: tuple[int, ...], row: Any) -> tuple[torch.Tensor, Any]:
        tensors[1].share_memory_()
        return _bridge.fresh(shape, row)

    with pytest.raises(nd.NdtorchError, match="torch has moved") as raised:
        column.take(np.array([0, 1]), allocate_and_move)
    assert raised.value.index == (1,)


@pytest.mark.parametrize("picked", [False, True])
def test_a_tensor_that_torch_moves_while_the_last_batch_is_gathered_is_an_error(picked: bool) -> None:
    tensor = torch.zeros(4, 9)
    data = torch.utils.data.Subset(torch.utils.data.TensorDataset(tensor), [0, 1]) if picked else (tensor,)
    loader = nd.Loader(data, 4, threads=0)
    (column,) = loader._sources.columns
    loop = iter(loader)
    check, calls = column.check, []

    def move_and_check() -> None:
        if calls:  # before the second, which comes after the gather
            tensor.share_memory_()
        calls.append(1)
        check()

    column.check = move_and_check
    with pytest.raises(nd.NdtorchError, match="torch has moved"):
        next(loop)


def test_a_tensor_of_a_list_that_has_become_another_one_is_named() -> None:
    tensors = [torch.zeros(9) for _ in range(6)]
    loader = nd.Loader(tensors, 2, threads=0)
    tensors[4].data = torch.zeros(8)
    with pytest.raises(nd.NdtorchError, match=r"has become another one .* expected f32\[9\]") as raised:
        next(iter(loader))
    assert raised.value.__notes__ == ["at row 4 of data"]


def test_tensors_of_a_list_are_found_again_beside_what_is_read_late(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    tensors = [torch.full((9,), float(i)) for i in range(2)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        loader = nd.Loader([*tensors, file.create_dataset("x", data=np.ones(9, np.float32))], 3, threads=0)
        for tensor in tensors:
            tensor.share_memory_()
            tensor += 7
        assert [row[0].item() for row in next(iter(loader))] == [7.0, 8.0, 1.0]


def test_a_list_of_tensors_over_arrays_takes_them_where_they_stay() -> None:
    arrays = [np.full(9, float(i)) for i in range(6)]
    tensors = list(map(nd.to_torch, arrays))
    loader = nd.Loader(tensors, 6, threads=0)
    loop = iter(loader)
    for tensor in tensors:
        tensor.share_memory_()
    assert_same(next(loop), torch.from_numpy(np.stack(arrays)))


# ---- memory maps ----


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    np.save(tmp_path / "a.npy", filled("f4", (4096, 64)))
    return np.load(tmp_path / "a.npy", mmap_mode="r")


def test_rows_of_a_memory_map_are_announced_and_gathered(mapped: np.memmap) -> None:
    loader = nd.Loader({"x": mapped[::-1]}, 1000, shuffle=True, threads=0)
    (column,) = loader._sources.columns
    assert column.is_slow
    column.announce(np.array([0, 4095]))
    for batch, rows in zip(loader, orders(4096, 1000, shuffle=True), strict=True):
        assert_same(batch["x"], tensor_holding(mapped[::-1][rows]))


def test_arrays_and_tensors_in_memory_are_not_announced() -> None:
    large = np.zeros((1024, 1024))
    for data in (large, torch.zeros(1024, 1024), torch.from_numpy(large)):
        assert not nd.Loader(data)._sources.columns[0].is_slow


def test_mapped_tensor_is_known_to_come_from_a_file(tmp_path: Path) -> None:
    np.arange(1 << 18, dtype=np.float32).tofile(tmp_path / "x")
    tensor = torch.from_file(str(tmp_path / "x"), size=1 << 18)
    loader = nd.Loader(tensor, 1 << 17, threads=0)
    if sys.platform.startswith("linux"):
        assert loader._sources.columns[0].is_slow
    assert_same(torch.cat(list(loader)), torch.arange(1 << 18, dtype=torch.float32))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")
@pytest.mark.parametrize("when", ["before the loader", "before a loop", "in a loop"])
def test_truncated_file_under_a_map_is_an_error_and_no_crash(when: str, mapped: np.memmap) -> None:
    message = r"Loader: cannot read f32\[4096,64\].*has become shorter"
    loader = None if when == "before the loader" else nd.Loader(mapped, 64, threads=0)
    loop = iter(loader) if loader is not None and when == "in a loop" else None
    if loop is not None:
        next(loop)
    os.truncate(mapped.filename, 4096)
    with pytest.raises(nd.NdtorchError, match=message):
        next(loop if loop is not None else iter(loader if loader is not None else nd.Loader(mapped, 64)))


# ---- kinds of arrays ----


def test_records_become_dicts_of_their_fields() -> None:
    inner = np.dtype([("x", ">f4"), ("y", "<f8", (2, 3))])
    records = np.zeros(5, np.dtype([("p", inner), ("when", "M8[s]"), ("name", "U2"), ("ok", "?")], align=True))
    records["p"]["x"] = np.arange(5)
    records["p"]["y"] = np.arange(30).reshape(5, 2, 3)
    records["when"] = np.arange(5)
    records["name"] = list("abcde")
    for source in (records, records[::-1], records.view(np.recarray)):
        for batch, rows in zip(
            batches({"r": source}, shuffle=True, float_dtype="float32"), orders(5, shuffle=True), strict=True
        ):
            assert_same(batch, {"r": nd.to_torch(np.asarray(source)[rows], float_dtype="float32")})


OTHERS: dict[str, np.ndarray] = {
    "times": np.array(["2024-01-01", "NaT", "2024-01-03"], "M8[D]"),
    "durations": np.array([1, 2, 3], ">m8[ns]"),
    "text": np.array([["a", "bcd"], ["ef", ""], ["x", "y"]]),
    "bytes": np.array([b"a", b"bcd", b""]),
    "objects": np.array([1, 2.5, True], object),
    "rows of objects": np.array([[1, 2], [3, 4], [5, 6]], object),
    "a subclass": np.rec.array(np.arange(6)).reshape(3, 2),
    "no columns": np.empty((3, 0)),
}


def test_range_is_its_numbers() -> None:
    assert_same(batches((range(6, 0, -2), [1, 2, 3])), [(torch.tensor([6, 4, 2]), torch.tensor([1, 2, 3]))])


@pytest.mark.parametrize("kind", OTHERS)
def test_other_arrays_come_as_to_torch_has_them(kind: str) -> None:
    array = OTHERS[kind]
    whole = nd.to_torch(array)
    for batch, rows in zip(batches(array, 2, shuffle=True), orders(3, 2, shuffle=True), strict=True):
        assert_same(batch, whole[torch.from_numpy(rows)])


def test_numbers_that_torch_has_not_come_cast_or_not_at_all() -> None:
    array = np.arange(6, dtype=np.longdouble).reshape(3, 2)[::-1] / 3
    if array.itemsize == 8:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(nd.UnsupportedDtypeError, match=r"torch has no float128.*astype|dtype='float64'"):
        nd.Loader({"x": array})
    for batch, rows in zip(batches(array, 2, float_dtype="float16"), orders(3, 2), strict=True):
        assert_same(batch, nd.to_torch(array[rows], float_dtype="float16"))


def test_masked_array_is_taken_where_nothing_is_masked() -> None:
    assert_same(batches(np.ma.array([1, 2, 3])), [torch.tensor([1, 2, 3])])
    records = np.ma.array(np.zeros(2, [("a", "i4")]))
    assert_same(batches(records), [{"a": torch.zeros(2, dtype=torch.int32)}])
    records["a"][1] = np.ma.masked
    for array in (np.ma.masked_equal([1, 9, 3], 9), records):
        with pytest.raises(nd.UnsupportedTypeError, match=r"Loader: .* no mask.*array\.filled"):
            nd.Loader(array)
    hinted = nd.to_torch(np.ma.masked_equal([1, 9, 3], 9), masked="nan")
    assert_same(batches(hinted), [torch.tensor([1.0, torch.nan, 3.0], dtype=torch.float64)])


# ---- tensors ----


@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning")
def test_complex32_keeps_its_dtype_and_follows_float_dtype() -> None:
    source = torch.tensor([1 + 2j, 3 - 4j, 0.5j]).to(torch.complex32)
    (batch,) = batches(source)
    assert batch.dtype == torch.complex32
    assert_same(batch.to(torch.complex64), source.to(torch.complex64))
    (batch,) = batches(source.conj(), float_dtype="float64")
    assert_same(batch, source.conj().to(torch.complex128).resolve_conj())


def test_rows_of_parameters_and_subclasses_are_plain_tensors_without_grad() -> None:
    class Tagged(torch.Tensor):
        pass

    for source in (torch.nn.Parameter(torch.arange(3.0)), torch.arange(3.0).as_subclass(Tagged)):
        (batch,) = batches(source)
        assert (type(batch), batch.requires_grad) == (torch.Tensor, False)
        assert_same(batch, torch.arange(3.0))


def test_tensor_whose_storage_was_taken_away_is_refused() -> None:
    tensor = torch.arange(6.0)
    tensor.untyped_storage().resize_(8)
    with pytest.raises(nd.UnsupportedTypeError, match="storage is smaller than itself"):
        nd.Loader(tensor)


@pytest.mark.cuda
def test_rows_of_a_tensor_on_a_device_are_picked_there() -> None:
    for name in ("uint16", "float8_e5m2", "bool", "float64", "complex64"):
        source = torch.arange(12).reshape(6, 2).to("cuda").to(DTYPES[name][1])
        loader = nd.Loader(source, 4, shuffle=True, threads=0)
        for batch, rows in zip(loader, orders(6, 4, shuffle=True), strict=True):
            assert batch.device.type == "cuda"
            assert_same(batch.cpu(), tensor_holding(nd.to_numpy(source)[rows]))


# ---- structures ----


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Data:
    x: Any
    y: Any
    note: Any = None


class Node:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts


optree.register_pytree_node(Node, lambda n: (n.parts, None), lambda _, parts: Node(*parts), namespace="ndtorch")


def test_structure_of_a_batch_is_that_of_the_data() -> None:
    x, y = np.arange(3.0), torch.arange(3)
    (pair,) = batches(Pair(x, (y, {"z": x})))
    assert type(pair) is Pair
    assert_same(pair.y, (y, {"z": torch.from_numpy(x)}))
    (data,) = batches(Data(x, {"b": y, "a": x}))
    assert type(data) is Data
    assert_same([data.x, data.y, data.note], [torch.from_numpy(x), {"b": y, "a": torch.from_numpy(x)}, None])
    (node,) = batches(Node(x, Node(y)))
    assert_same([node.parts[0], node.parts[1].parts[0]], [torch.from_numpy(x), y])
    (ordered,) = batches(collections.OrderedDict(b=x, a=y))
    assert_same(ordered, collections.OrderedDict(b=torch.from_numpy(x), a=y))


def test_none_stays_none_in_every_batch() -> None:
    for batch in batches({"x": np.arange(5), "mask": None, "y": (None, [1, 2, 3, 4, 5])}):
        assert batch["mask"] is None
        assert batch["y"][0] is None
        assert_same(batch["y"][1], batch["x"] + 1)


def test_data_of_no_rows_is_a_loop_of_no_batches() -> None:
    for data in (
        np.empty((0, 3)),
        {"x": np.empty(0), "y": [], "z": torch.empty(0, 2)},
        [],
        TensorDataset(torch.ones(0)),
    ):
        for options in ({}, {"shuffle": True}, {"image": True}, {"pad_value": 0}):
            loader = nd.Loader(data, 2, **options)
            assert (len(loader), list(loader)) == (0, [])


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a scalar": ({"x": np.float64(3)}, nd.UnsupportedTypeError, "a float64 has no rows"),
    "no axis": ((np.ones(3), np.array(3.0)), nd.UnsupportedTypeError, r"f64\[\]\(numpy\) has no rows"),
    "a number": ({"x": np.ones(3), "k": 5}, nd.UnsupportedTypeError, "an int has no rows"),
    "text": ({"x": np.ones(3), "k": "abc"}, nd.UnsupportedTypeError, r"a str has no rows.*ndtorch\.read"),
    "a tuple of numbers": ((1, 2, 3), nd.UnsupportedTypeError, "an int has no rows.*a list of numbers"),
    "None": (None, nd.UnsupportedTypeError, "None has no rows"),
    "nothing": ((), nd.ShapeMismatchError, "the data has no arrays"),
    "None alone": ({"x": None}, nd.ShapeMismatchError, "the data has no arrays"),
    "a generator": ((i for i in range(3)), nd.UnsupportedTypeError, "generator"),
    "a set": ({1, 2}, nd.UnsupportedTypeError, r"a set.*list\(source\)"),
    "a module": (torch.nn.Linear(2, 2), nd.UnsupportedTypeError, r"state_dict\(\)"),
    "int4": (np.zeros(3, ml_dtypes.int4), nd.UnsupportedDtypeError, "torch has no int4"),
    "void": (np.zeros(3, "V4"), nd.UnsupportedTypeError, "void bytes"),
    "a sparse tensor": (torch.eye(3).to_sparse(), nd.UnsupportedTypeError, r"sparse_coo.*to_dense\(\)"),
    "a meta tensor": (torch.ones(3, device="meta"), nd.UnsupportedTypeError, "a meta tensor has a shape but no values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_rows_is_refused(kind: str) -> None:
    data, error, message = REFUSED[kind]
    with pytest.raises(error, match=rf"^Loader: .*{message}"):
        nd.Loader(data)


def test_refusal_names_the_leaf() -> None:
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.Loader({"x": np.ones(3), "y": ({"z": np.zeros(3, [("a", "i4"), ("b", "V2")])},)})
    assert caught.value.path == "['y'][0]['z']['b']"


def test_lengths_that_differ_name_both_leaves_and_both_lengths() -> None:
    with pytest.raises(nd.ShapeMismatchError, match=r"data\['b'\]\[1\] has 4 rows and data\['a'\] has 3") as caught:
        nd.Loader({"a": np.ones(3), "b": (None, [1, 2, 3, 4])})
    assert (caught.value.expected, caught.value.got) == (3, 4)


# ---- datasets of torch ----


def test_dataset_of_tensors_and_parts_of_it_are_taken_by_columns() -> None:
    whole = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))
    parts = random_split(whole, [3, 7], torch.Generator().manual_seed(1))
    for dataset in (whole, *parts, Subset(parts[1], [5, -1, 0]), Subset(whole, np.array([3, -10]))):
        found = batches(dataset, 2, shuffle=True, float_dtype="float16")
        for batch, rows in zip(found, orders(len(dataset), 2, shuffle=True), strict=True):
            samples = [dataset[row] for row in rows.tolist()]
            assert type(batch) is tuple
            assert_same(batch[0], torch.stack([x for x, _ in samples]).half())
            assert_same(batch[1], torch.stack([y for _, y in samples]))
        assert len(nd.Loader(dataset)._sources.columns) == 2


def test_subset_of_tensors_outside_of_them_is_refused_up_front() -> None:
    with pytest.raises(nd.ShapeMismatchError, match="the index 30 at 1, of 10 samples"):
        nd.Loader(Subset(TensorDataset(torch.arange(10)), [3, 30]))


class Squares(Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"x": i * i}


@dataclass
class Described(Squares):
    name: str = "a dataset that is a dataclass too"


class Indexed:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"x": i * i}


@pytest.mark.parametrize(
    "dataset", [Squares(), Described(), Indexed(), ConcatDataset([Squares()])], ids=lambda each: type(each).__name__
)
def test_other_datasets_give_their_samples_one_by_one(dataset: Any) -> None:
    rows = orders(5, shuffle=True)
    assert_same(batches(dataset, shuffle=True), [{"x": torch.tensor(each**2)} for each in rows])
    assert_same(batches((dataset, np.arange(5))), [({"x": torch.tensor(r**2)}, torch.tensor(r)) for r in orders(5)])


def test_collate_fn_is_given_samples_and_refused_where_there_are_none() -> None:
    assert batches([1, 2, 3], 2, collate_fn=tuple) == [(1, 2), (3,)]
    assert batches(TensorDataset(torch.arange(3)), 2, collate_fn=len) == [2, 1]
    with pytest.raises(nd.InvalidOptionError, match="collate_fn= has no samples to put together"):
        nd.Loader(np.ones(3), collate_fn=len)


# ---- options ----


def test_float_dtype_casts_floating_leaves_and_complex_follows() -> None:
    data = {"f": np.arange(3.0), "c": np.arange(3) * 1j, "i": np.arange(3), "b": np.array([True, False, True])}
    (batch,) = batches(data, float_dtype=torch.float32)
    assert {name: leaf.dtype for name, leaf in batch.items()} == {
        "f": torch.float32,
        "c": torch.complex64,
        "i": torch.int64,
        "b": torch.bool,
    }


def test_float_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(nd.InvalidOptionError, match=r"Loader: float_dtype=int8 is not a floating dtype"):
        nd.Loader(np.ones(3), float_dtype="int8")
    with pytest.raises(nd.NdtorchError, match="Loader: "):
        nd.Loader(np.ones(3), float_dtype="float33")


def test_a_list_of_columns_is_told_to_be_a_tuple():
    with pytest.raises(nd.ShapeMismatchError, match="a list is rows and a tuple is columns"):
        nd.Loader([np.zeros((5, 3)), np.zeros(5)])


def test_a_loader_says_what_it_is():
    assert repr(nd.Loader(np.arange(5), 2, shuffle=True, seed=3)) == (
        "<Loader: 5 rows in batches of 2, shuffled, seed 3, epoch 0>"
    )
    loader = nd.Loader(np.arange(5), 2, rank=1, world_size=2)
    list(loader)
    assert repr(loader) == "<Loader: 5 rows in batches of 2, sequential, seed 0, epoch 1, rank 1 of 2>"
    batches = [[0, 1], [2, 3, 4]]
    assert repr(nd.Loader(np.arange(5), batch_sampler=batches)).startswith("<Loader: 5 rows, ")


# ---- objects of several kinds ----

OBJECTS: dict[str, tuple[Any, Any]] = {
    "texts and None": (["a", None], ["a", ""]),
    "texts and NaN": (["a", float("nan"), None], ["a", "", ""]),
    "numbers and None": ([1, 2.5, None], torch.tensor([1.0, 2.5, torch.nan], dtype=torch.float64)),
    "texts and numbers": (["a", 1], ["a", "1"]),
    "rows of numbers and None": ([[1, 2], [3, None]], torch.tensor([[1.0, 2.0], [3.0, torch.nan]]).double()),
    "rows of texts": ([["a", "b"], ["c", "d"]], [["a", "c"], ["b", "d"]]),
    "rows of texts and None": ([["a", "b"], ["c", None]], [["a", "c"], ["b", ""]]),
    "rows of texts and numbers": ([["a", 1], ["c", 2]], (["a", "c"], torch.tensor([1, 2]))),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("place", ["", "['x']"])
def test_hint_at_objects_of_several_kinds_is_a_call_that_works(name: str, place: str) -> None:
    source, expected = OBJECTS[name]
    array = np.array(source, dtype=object)
    data = {"x": array} if place else array
    with pytest.raises(nd.NdtorchError, match=r"^Loader: ") as caught:
        nd.Loader(data, 3)
    call = re.split(" keeps | makes | takes ", caught.value.hint)[0]
    assert f"data{place}" in call
    (batch,) = nd.Loader(eval(call, {"data": data, "numpy": np}), 3)
    assert_same(batch, expected)


def test_hint_at_a_list_of_several_kinds_is_a_call_that_works() -> None:
    for name in ("texts and None", "numbers and None", "texts and numbers"):
        data, expected = OBJECTS[name]
        with pytest.raises(nd.ShapeMismatchError, match=r"sample . has another kind than sample 0") as caught:
            nd.Loader(data, 3)
        call = re.split(" keeps | makes ", caught.value.hint)[0]
        (batch,) = nd.Loader(eval(call, {"data": data, "numpy": np}), 3)
        assert_same(batch, expected)


def test_text_of_numpy_is_code_points_and_a_list_of_it_stays_text() -> None:
    names = np.array(["n1", "n22"])
    ((points, kept),) = nd.Loader((names, names.tolist()), 2)
    assert_same(points, nd.to_torch(names))
    assert kept == ["n1", "n22"]
