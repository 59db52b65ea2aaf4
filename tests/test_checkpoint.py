"""Checkpoints: what `to_checkpoint` gives is saved small and loaded by ``weights_only``, values and ties intact."""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import pathlib
import pickle
import random
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import optree
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares, byte_addresses, tensor_holding
from hypothesis import given
from strategies import DTYPES, SHAREABLE, UNSHAREABLE, arrays, can_be, filled, read_only, tensors

import ndtorch as nd

OVERHEAD = 4096  # of a small file beside its tensors


class Point(NamedTuple):
    x: Any
    y: Any = None


class Color(enum.Enum):
    RED = "red"
    PAIR = (np.int64(1), 2)


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Number(float):
    pass


class Loud(dict):
    """A dict with an attribute of its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.volume = 11


class Colored(torch.Tensor):
    """A subclass of tensor that adds nothing."""


class Weight(torch.nn.Parameter):
    """A subclass of parameter that adds nothing."""


class Wrapper(torch.Tensor):
    """A tensor without memory of its own."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("nobody may compute with it")


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = "none"


class Node:
    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


optree.register_pytree_node(
    Node, lambda node: ((node.left, node.right), None, ("left", "right")), lambda _, c: Node(*c), namespace="ndtorch"
)


def save(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def load(file: bytes) -> Any:
    return torch.load(io.BytesIO(file), weights_only=True)


def round_trip(tree: Any) -> Any:
    return load(save(nd.to_checkpoint(tree).state))


def refused_by_torch(tree: Any) -> bool:
    """Whether plain torch cannot save this, or ``weights_only`` cannot load it."""
    try:
        load(save(tree))
    except (pickle.PicklingError, pickle.UnpicklingError, RuntimeError, TypeError, AttributeError, NotImplementedError):
        return True
    return False


def same_storage(*many: torch.Tensor) -> bool:
    return len({tensor.untyped_storage()._cdata for tensor in many}) == 1


# ---- objects: each of these is refused by weights_only, and is plain afterwards ----


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float16("nan"), float("nan")),
        (np.longdouble(1.5), 1.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.complex64(1j), 1j),
        (np.clongdouble(2 - 1j), 2 - 1j),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.datetime64("2024-02-29", "D"), 19782),
        (np.timedelta64(-5, "ms"), -5),
        (np.datetime64("NaT", "s"), -(2**63)),
        (ml_dtypes.bfloat16(1.5), 1.5),
        (ml_dtypes.float8_e4m3fn(2), 2.0),
        (ml_dtypes.int4(-3), -3),
        (np.zeros(1, [("x", "f4"), ("n", "U3")])[0], {"x": 0.0, "n": ""}),
        (np.dtype("float32"), "float32"),
        (np.dtype(">i4"), ">i4"),
        (np.dtype("datetime64[ns]"), "datetime64[ns]"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        (np.float32, "float32"),
        (torch.channels_last, "torch.channels_last"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 1, 2, 3, 4, datetime.UTC), "2024-02-29T01:02:03.000004+00:00"),
        (Color.RED, "red"),
        (Color.PAIR, (1, 2)),
        (Level.HIGH, 3),
        (Text("a"), "a"),
        (Number(0.5), 0.5),
        (b"", bytearray()),
        (frozenset({1}), {1}),
        (range(3), [0, 1, 2]),
        (collections.deque([1, 2], maxlen=2), [1, 2]),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.UserDict(a=1), {"a": 1}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"b": 2, "a": 1}),
        (collections.UserString("a"), "a"),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Loud({"a": 1}), {"a": 1}),
        (Point(1, "b"), {"x": 1, "y": "b"}),
        (Sample(1), {"image": 1, "label": "none"}),
        (argparse.Namespace(lr=0.5), {"lr": 0.5}),
        (types.SimpleNamespace(lr=0.5), {"lr": 0.5}),
        (Node(1, "b"), {"left": 1, "right": "b"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_object_that_weights_only_refuses_becomes_plain(value, plain):
    assert refused_by_torch({"x": value}), f"weights_only takes {value!r} by now: it may stay"
    checkpoint = nd.to_checkpoint({"x": [value]})
    assert_same(load(save(checkpoint.state)), {"x": [plain]})
    assert checkpoint.changes[0].path == "['x'][0]"
    assert checkpoint.changes[0].why.startswith("refused by weights_only")
    assert_same(nd.to_checkpoint(value).state, plain)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -1, 2**100, -(2**2000), 0.5, float("nan"), 1j, "text", "\ud800", b"bytes", bytearray(b"x")),
        *(torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda:1"), torch.strided),
        *(torch.per_tensor_affine, torch.Size([2, 3]), {1, 2}, (1, (2,)), [1, [2]], {"a": {None: (1, "b")}}),
        *(collections.OrderedDict(b=1, a=2), collections.Counter("aab"), {(1, "a"): 2, 0.5: 3, b"k": 4}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_object_that_weights_only_takes_stays(value):
    checkpoint = nd.to_checkpoint(value)
    assert checkpoint.changes == ()
    assert_same(checkpoint.state, value)
    assert_same(load(save(checkpoint.state)), value)


@pytest.mark.parametrize("sign", [1, -1])
def test_largest_integer_that_weights_only_takes_is_taken_and_the_next_is_refused(sign):
    assert round_trip([sign * (2**2039 - 1)]) == [sign * (2**2039 - 1)]
    assert refused_by_torch([sign * 2**2047])
    with pytest.raises(nd.UnsupportedTypeError, match="an integer of 2,048 bits"):
        nd.to_checkpoint([sign * 2**2047])


@pytest.mark.parametrize(
    ("value", "name", "hint"),
    [
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear", "state_dict"),
        (torch.optim.SGD([torch.zeros(1)]), "torch.optim.sgd.SGD", "state_dict"),
        (torch.Generator(), "torch._C.Generator", "value.get_state()"),
        (np.random.default_rng(0), "numpy.random._generator.Generator", "value.bit_generator.state"),
        (random.Random(0), "random.Random", "value.getstate()"),
        (torch.zeros(2).untyped_storage(), "torch.storage.UntypedStorage", "set_(value)"),
        (len, "builtin_function_or_method", "__qualname__"),
        (lambda: 0, "function", "__qualname__"),
        (functools.partial(len), "functools.partial", "leave it out"),
        (int, "type", "'int'"),
        (types.ModuleType("math"), "module", "__name__"),
        (datetime.timedelta(1), "datetime.timedelta", "total_seconds"),
        (decimal.Decimal(1), "decimal.Decimal", "str(value)"),
        (object(), "object", "leave it out"),
        (..., "ellipsis", "leave it out"),
        (slice(1), "slice", "leave it out"),
        (memoryview(b"a"), "memoryview", "numpy.asarray"),
        (array.array("d", [1]), "array.array", "numpy.asarray"),
        (np.void(b"ab"), "numpy.void", "tobytes"),
        (iter([1]), "list_iterator", "leave it out"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_object_without_a_plain_form_is_refused_with_its_path_class_and_what_to_do(value, name, hint):
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.to_checkpoint({"a": [0, Point(value)]})
    assert error.value.path == "['a'][1].x"
    assert error.value.type is type(value)
    assert f"to_checkpoint: cannot save a {name}: weights_only refuses it" in str(error.value)
    assert hint in error.value.hint


def test_longdouble_becomes_a_float_only_when_it_is_one():
    if np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant:
        pytest.skip("longdouble is float64 here")
    third = np.longdouble(1) / 3
    for value in (third, np.clongdouble(third)):
        with pytest.raises(nd.LossyCastError, match=r"cannot save a numpy\.c?longdouble as (float|complex)") as error:
            nd.to_checkpoint({"x": value})
        assert error.value.path == "['x']"
    assert np.isnan(nd.to_checkpoint(np.longdouble("nan")).state)


def test_hints_lead_to_something_that_can_be_saved():
    generator = np.random.default_rng(0)
    assert round_trip(generator.bit_generator.state) == generator.bit_generator.state
    assert_same(round_trip(np.random.get_state(legacy=True))[1], tensor_holding(np.random.get_state(legacy=True)[1]))
    assert_same(round_trip(torch.Generator().get_state()), torch.Generator().get_state())
    storage = torch.arange(3, dtype=torch.uint8).untyped_storage()
    assert_same(round_trip(torch.empty(0, dtype=torch.uint8).set_(storage)), torch.arange(3, dtype=torch.uint8))
    assert round_trip(random.Random(0).getstate()) == random.Random(0).getstate()


# ---- containers ----


def test_keys_become_plain():
    tree = {np.str_("a"): 1, np.int64(2): 2, Color.RED: 3, (np.int8(1), "b"): 4, np.float64(0.5): 5}
    checkpoint = nd.to_checkpoint(tree)
    loaded = load(save(checkpoint.state))
    assert loaded == {"a": 1, 2: 2, "red": 3, (1, "b"): 4, 0.5: 5}
    assert [type(key) for key in loaded] == [str, int, str, tuple, float]
    paths = ["['a']", "[2]", "[test_checkpoint.Color]", "[(1, 'b')][0]", "[0.5]"]
    assert [change.path for change in checkpoint.changes] == paths


@pytest.mark.parametrize("tree", [{Color.RED: 1, "red": 2}, {Color.RED, "red"}, {np.datetime64(3, "s"): 1, 3: 2}])
def test_keys_that_would_become_one_are_refused(tree):
    with pytest.raises(nd.NdtorchError, match="two keys become one"):
        nd.to_checkpoint([tree])


@pytest.mark.parametrize("tree", [{Point(1, 2): 1}, {frozenset({1}): 1}, {frozenset({1})}, {b"": 1}])
def test_key_whose_plain_form_cannot_be_one_is_refused(tree):
    with pytest.raises(nd.UnsupportedTypeError, match="as a key or in a set: it becomes a") as error:
        nd.to_checkpoint([tree])
    assert error.value.path.startswith("[0]")


def test_what_a_plain_container_cannot_hold_is_said():
    tree = [Loud({"a": 1}), collections.defaultdict(list), collections.deque(maxlen=3), collections.defaultdict()]
    why = [change.why.partition("; ")[2] for change in nd.to_checkpoint(tree).changes]
    assert why == ["without its volume", "without its default_factory", "without its maxlen", ""]


def test_arrays_in_an_npz_file_are_a_mapping(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    with np.load(tmp_path / "a.npz") as file:
        assert_same(round_trip(file), {"x": torch.arange(3), "y": torch.ones(2, dtype=torch.float64)})


def test_result_of_torch_max_becomes_a_dict():
    assert_same(round_trip(torch.eye(2).max(0)), {"values": torch.ones(2), "indices": torch.tensor([0, 1])})


def test_structure_inside_itself_is_refused():
    looped: list[Any] = [{}]
    looped[0]["again"] = looped
    tensor = torch.zeros(2)
    tensor.me = [tensor]
    for tree in (looped, {"a": tensor}):
        with pytest.raises(nd.NdtorchError, match="the structure contains itself") as error:
            nd.to_checkpoint(tree)
        assert error.value.path in ("[0]['again']", "['a'].me[0]")


def test_structure_nested_too_deeply_is_refused():
    tree: list[Any] = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(nd.NdtorchError, match="nested too deeply"):
        nd.to_checkpoint(tree)
    while tree:
        tree = tree.pop()  # a list this deep is not collected in one go


def test_part_that_occurs_twice_is_one_part_afterwards():
    shared = {"lr": np.float64(0.5), "w": torch.zeros(1000)[:1]}
    checkpoint = nd.to_checkpoint({"a": shared, "b": (shared,)})
    assert checkpoint.state["a"] is checkpoint.state["b"][0]
    assert len(checkpoint.changes) == 2
    loaded = load(save(checkpoint.state))
    assert loaded["a"] is loaded["b"][0]


def test_tree_never_changes():
    tree = {
        "list": [np.float64(1), torch.zeros(1000)[:3]],
        "dict": collections.OrderedDict(a=np.arange(3), b=read_only(np.arange(3))),
        "point": Point(np.zeros((3, 3))[:, 0]),
        np.str_("key"): {np.int8(1)},
    }
    tree["list"][1].note = np.float64(2)
    before = pickle.dumps(tree)
    leaves = optree.tree_leaves(tree)
    checkpoint = nd.to_checkpoint(tree)
    assert pickle.dumps(tree) == before
    assert all(a is b for a, b in zip(leaves, optree.tree_leaves(tree), strict=True))
    checkpoint.state["list"].append(1)
    assert len(tree["list"]) == 2


def test_containers_of_the_state_are_new_even_when_nothing_changed():
    tree = {"a": [1, {"b": (2,)}], "w": torch.ones(2)}
    state = nd.to_checkpoint(tree).state
    state["a"][1]["b"] = 0
    assert tree["a"][1]["b"] == (2,)
    assert state["w"] is tree["w"]


# ---- arrays ----


@pytest.mark.parametrize("layout", ["row-major", *UNSHAREABLE, *SHAREABLE])
@pytest.mark.parametrize("name", DTYPES)
def test_array_becomes_the_tensor_of_its_values(name, layout):
    numpy, _ = DTYPES[name]
    if layout in UNSHAREABLE and not can_be(layout, numpy):
        pytest.skip("this dtype cannot be laid out like this")
    array = ({**SHAREABLE, **UNSHAREABLE})[layout](filled(numpy))
    (loaded,) = round_trip([array])
    assert_same(loaded, tensor_holding(filled(numpy)))


@pytest.mark.parametrize("make", [read_only, lambda a: a], ids=["read-only", "writable"])
def test_array_is_shared_not_copied(make):
    array = make(np.arange(1000.0))
    tensor = nd.to_checkpoint({"a": array}).state["a"]
    assert tensor.data_ptr() == array.ctypes.data
    assert_same(tensor, tensor_holding(array))


def test_read_only_memory_map_is_saved_without_a_copy_in_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10_000.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    checkpoint = nd.to_checkpoint({"part": mapped[10:20], "same": mapped[10:20]})
    assert checkpoint.state["part"].data_ptr() == mapped[10:].ctypes.data
    file = save(checkpoint.state)
    assert len(file) < OVERHEAD
    assert_same(load(file)["part"], torch.arange(10, 20, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_memory_map_of_a_file_that_has_shrunk_is_refused(tmp_path, mode):
    np.arange(10_000.0).tofile(tmp_path / "a.bin")
    mapped = np.memmap(tmp_path / "a.bin", float, mode)
    with open(tmp_path / "a.bin", "r+b") as file:
        file.truncate(100)
    with pytest.raises(nd.NdtorchError, match=r"to_checkpoint: .* has become shorter than the array") as error:
        nd.to_checkpoint([mapped])
    assert error.value.path == "[0]"


def test_masked_array_becomes_data_and_mask():
    masked = np.ma.masked_equal(np.array([1, 9, 3], np.int32), 9)
    expected = {"data": torch.tensor([1, 9, 3], dtype=torch.int32), "mask": torch.tensor([False, True, False])}
    assert_same(round_trip([masked]), [expected])
    unmasked = round_trip(np.ma.MaskedArray([1.0, 2.0]))
    assert_same(unmasked["mask"], torch.tensor([False, False]))
    assert_same(round_trip(nd.to_torch(masked, masked="split")), expected)


def test_structured_array_becomes_a_dict_of_fields():
    table = np.zeros(3, [("x", "f8"), ("when", "M8[ms]"), ("in", [("a", "i2"), ("name", "S2")])])
    table["x"] = [1, 2, 3]
    checkpoint = nd.to_checkpoint({"t": table})
    loaded = load(save(checkpoint.state))["t"]
    assert_same(loaded["x"], torch.tensor([1.0, 2, 3], dtype=torch.float64))
    assert_same(loaded["when"], torch.zeros(3, dtype=torch.int64))
    assert_same(loaded["in"]["name"], torch.zeros(3, 2, dtype=torch.uint8))
    why = checkpoint.changes[0].why
    assert "['when'] counts of ms" in why
    assert "['in'] ['name'] one uint8 per character" in why


@pytest.mark.parametrize(
    ("array", "tensor", "why"),
    [
        (np.array(["2024-02-29", "NaT"], "M8[D]"), torch.tensor([19782, -(2**63)]), "counts of D"),
        (np.array([3], "m8[25s]"), torch.tensor([3]), "counts of 25 s"),
        (np.array(["ab"]), torch.tensor([[97, 98]], dtype=torch.int32), "one code point per character"),
        (np.array([b"ab"]), torch.tensor([[97, 98]], dtype=torch.uint8), "one uint8 per character"),
        (np.array([1, 2.5], object), torch.tensor([1, 2.5], dtype=torch.float64), ""),
        (np.broadcast_to(np.float32(3), (1000, 1000)), torch.full((1000, 1000), 3.0), ""),
        (np.array(0.5), torch.tensor(0.5, dtype=torch.float64), ""),
        (np.zeros((0, 3)), torch.zeros((0, 3), dtype=torch.float64), ""),
    ],
    ids=["datetime", "timedelta", "text", "bytes", "object", "broadcast", "0-d", "empty"],
)
def test_array_of_something_else_follows_the_rules_of_to_torch(array, tensor, why):
    checkpoint = nd.to_checkpoint({"a": array})
    file = save(checkpoint.state)
    assert len(file) < OVERHEAD
    assert_same(load(file), {"a": tensor})
    assert checkpoint.changes[0].why.partition("; ")[2] == why


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros(3, np.longdouble), "astype(numpy.float64)"),
        (np.array(["a", None], object), "array.tolist()"),
        (np.array(["a"], np.dtypes.StringDType()), "array.tolist()"),
        (np.zeros(3, "V5"), "array.view(dtype)"),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_array_without_a_tensor_form_is_refused_with_its_path(array, hint):
    with pytest.raises(nd.UnsupportedTypeError, match="to_checkpoint: cannot convert") as error:
        nd.to_checkpoint({"a": [array]})
    assert error.value.path == "['a'][0]"
    assert hint in error.value.hint


# ---- memory: only what is used is saved, and what was shared stays shared ----


def test_one_element_of_a_large_tensor_is_saved_alone():
    large = torch.arange(1_000_000)
    assert len(save([large[5:6]])) > large.nbytes
    checkpoint = nd.to_checkpoint([large[5:6]])
    assert len(save(checkpoint.state)) < OVERHEAD
    assert_same(load(save(checkpoint.state)), [torch.tensor([5])])
    assert checkpoint.changes.nbytes_saved == large.nbytes - 8
    small = large[:1000].clone()
    assert_independent(small, nd.to_checkpoint([small[5:6]]).state[0])


@pytest.mark.parametrize(
    ("view", "nbytes"),
    [
        (lambda w: w[:, 0], 400),
        (lambda w: w[3], 400),
        (lambda w: w[::10, ::10], 400),
        (lambda w: w[:0], 0),
        (lambda w: w[:1, :1].expand(500, 500), 4),
        (lambda w: w[:10, :1].expand(10, 500), 40),
        (lambda w: w[0, :20].unfold(0, 10, 1), 80),
        (lambda w: w[5, 5], 4),
        (lambda w: w.T[:10], 4000),
    ],
    ids=["column", "row", "steps", "empty", "expanded", "expanded rows", "windows", "0-d", "transposed"],
)
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_view_is_saved_without_its_gaps(view, nbytes, library):
    whole = torch.arange(10_000, dtype=torch.float32).reshape(100, 100)
    part = view(whole)
    source = part if library == "torch" else nd.to_numpy(part)
    checkpoint = nd.to_checkpoint({"w": source})
    assert checkpoint.state["w"].untyped_storage().nbytes() == nbytes
    file = save(checkpoint.state)
    assert len(file) < nbytes + OVERHEAD
    assert_same(load(file)["w"], part)


def test_channels_last_stays_channels_last():
    batch = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last)
    for part in (batch[:2], batch[:2, :2], batch[2:4, :, 1:3]):
        assert_same(round_trip(part), part)
        assert round_trip(part).is_contiguous(memory_format=torch.channels_last)
    assert_same(round_trip(batch[:2]), batch[:2], strides=True)


def test_waste_of_less_than_a_page_and_than_what_is_used_is_left_alone():
    series = torch.zeros(100_000)
    for part, stays in ((series[1:], True), (series[1024:], False), (series[:100], False), (series[1023:], True)):
        assert (nd.to_checkpoint(part).state is part) == stays
    assert nd.to_checkpoint(torch.zeros(10)[:5]).changes == ()
    assert nd.to_checkpoint(torch.zeros(10)[:4]).changes != ()


def test_nothing_is_copied_when_the_views_together_use_the_whole_storage():
    flat = torch.arange(100_000.0)
    tree = {"a": flat[:50_000], "b": flat[50_000:].reshape(100, 500), "c": flat[10:20], "d": flat[:0]}
    checkpoint = nd.to_checkpoint(tree)
    assert checkpoint.changes == ()
    assert all(checkpoint.state[name] is tensor for name, tensor in tree.items())
    columns = list(flat.reshape(1000, 100).unbind(1))
    assert nd.to_checkpoint(columns).changes == ()


def test_tied_weights_stay_tied():
    weight = torch.randn(1000, 100)
    tree = {"in": weight[:10], "out": weight[:10], "param": torch.nn.Parameter(weight[:10]), "t": weight[:10].T}
    checkpoint = nd.to_checkpoint(tree)
    file = save(checkpoint.state)
    assert len(file) < 4000 + OVERHEAD
    loaded = load(file)
    assert_same(loaded, tree)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == 1
    assert_shares(loaded["in"], loaded["t"])


def test_overlapping_views_keep_one_storage_and_their_places_in_it():
    base = torch.arange(100_000)
    tree = {
        "a": base[100:300],
        "b": base[200:400],
        "c": base[250:251],
        "far": base[90_000:90_010],
        "step": base[100::9],
    }
    del tree["step"]
    loaded = round_trip(tree)
    assert_same(loaded, tree)
    assert same_storage(loaded["a"], loaded["b"], loaded["c"])
    assert loaded["a"].untyped_storage().nbytes() == 300 * 8
    assert loaded["far"].untyped_storage().nbytes() == 10 * 8
    loaded["b"][50] = -1
    assert loaded["c"][0] == -1
    assert loaded["a"][150] == -1


def test_columns_of_a_matrix_come_apart():
    matrix = torch.arange(1_000_000.0).reshape(1000, 1000)
    tree = {"first": matrix[:, 0], "last": matrix[:, 999], "both": matrix[:, 5:7]}
    file = save(nd.to_checkpoint(tree).state)
    assert len(file) < 4 * 4000 + OVERHEAD
    assert_same(load(file), tree)


def test_many_interleaved_views_stay_together():
    matrix = torch.arange(100_000.0).reshape(100, 1000)
    columns = [matrix[10:20, i] for i in range(100)]
    loaded = round_trip(columns)
    assert_same(loaded, columns)
    assert same_storage(*loaded)
    assert loaded[0].untyped_storage().nbytes() == (9 * 1000 + 100) * 4


def test_arrays_over_one_memory_become_tensors_over_one_memory():
    base = np.arange(1000.0)
    for tree in (
        {"whole": base, "part": base[10:20], "again": base},
        {"part": base[10:20], "whole": base},
        {"a": base[:600], "b": base[400:]},
        {"tensor": torch.from_numpy(base), "array": base[1:]},
        {"tensor": torch.from_numpy(base)[5:500], "array": base[1:300]},
        {"read-only": read_only(base[5:10]), "whole": base},
    ):
        loaded = round_trip(tree)
        assert_same(loaded, {name: tensor_holding(nd.to_numpy(value)) for name, value in tree.items()})
        assert same_storage(*loaded.values())
        assert len(save(nd.to_checkpoint(tree).state)) < base.nbytes + OVERHEAD


def test_one_memory_under_two_dtypes_becomes_two_since_torch_refuses_it():
    numbers = torch.arange(1000, dtype=torch.int32)
    complexes = torch.randn(500, dtype=torch.complex64)
    for tree in (
        {"a": numbers, "b": numbers.view(torch.float32), "c": numbers.view(torch.int16)[:, None]},
        {"whole": complexes, "real": complexes.real, "imag": complexes.imag, "minus": complexes.conj().imag},
        {"a": np.arange(100), "b": np.arange(100).view("f8")},
        (lambda a: {"a": a, "b": a.view("f8"), "c": a[:1]})(np.arange(100)),
    ):
        checkpoint = nd.to_checkpoint(tree)
        assert_same(load(save(checkpoint.state)), nd.to_torch(tree))
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        save([numbers, numbers.view(torch.float32)])
    checkpoint = nd.to_checkpoint([numbers, numbers.view(torch.float32)])
    assert checkpoint.state[0] is numbers
    assert [change.why for change in checkpoint.changes] == ["torch.save refuses one memory under two dtypes"]


def test_complex_arrays_that_overlap_by_half_an_element_are_saved_apart():
    raw = np.arange(101.0)
    tree = {"a": raw[:100].view(np.complex128), "b": raw[1:].view(np.complex128)}
    assert_same(round_trip(tree), {name: tensor_holding(array) for name, array in tree.items()})


@pytest.mark.parametrize("name", [*DTYPES, "complex32"])
def test_every_dtype_is_compacted(name):
    dtype = getattr(torch, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex32 is experimental
        whole = torch.zeros(10_000, dtype=torch.uint8).fill_(1).view(dtype)
        tree = {"one": whole[3:4], "two": whole[10:14], "three": whole[12:16], "rows": whole[100:104].expand(3, 4)}
        file = save(nd.to_checkpoint(tree).state)
        assert len(file) < OVERHEAD
        assert_same(load(file), tree)


def test_lazy_conjugates_and_negatives_keep_their_values():
    z = torch.randn(1000, dtype=torch.complex64)
    tree = {"z": z[:10], "conj": z[:10].conj(), "overlapping": z[5:15].conj()}
    loaded = round_trip(tree)
    assert_same(loaded, tree)
    assert same_storage(*loaded.values())
    assert loaded["conj"].is_conj()
    for lazy in (z.conj(), z[:3].conj(), z.conj().imag, z[:3].conj().imag, z[::2].conj().imag):
        assert_same(round_trip(lazy), lazy)


def test_storage_that_was_emptied_or_shrunk_is_refused():
    empty, small = torch.ones(10), torch.ones(10)
    empty.untyped_storage().resize_(0)
    small.untyped_storage().resize_(8)
    for tensor, why in ((empty, "its storage was emptied"), (small, "its storage is smaller than itself")):
        with pytest.raises(nd.UnsupportedTypeError, match=why) as error:
            nd.to_checkpoint({"a": tensor})
        assert error.value.path == "['a']"


@pytest.mark.cuda
def test_view_on_a_cuda_device_is_compacted_there():
    whole = torch.arange(100_000, device="cuda")
    tree = {"a": whole[:10], "b": whole[5:20], "all": torch.ones(3, device="cuda")}
    checkpoint = nd.to_checkpoint(tree)
    assert checkpoint.state["all"] is tree["all"]
    file = save(checkpoint.state)
    assert len(file) < OVERHEAD
    loaded = load(file)
    assert_same(loaded, tree)
    assert same_storage(loaded["a"], loaded["b"])


# ---- tensors ----


def test_parameters_stay_parameters_with_their_gradient_flag_and_attributes():
    big = torch.randn(1000)
    frozen = torch.nn.Parameter(big[:3], requires_grad=False)
    trained = torch.nn.Parameter(big[3:6].clone())
    trained.partition, trained.scale = 1, np.float64(0.5)
    needs = big[6:9].requires_grad_()
    checkpoint = nd.to_checkpoint({"f": frozen, "t": trained, "again": trained, "n": needs, "product": trained * 2})
    loaded = load(save(checkpoint.state))
    assert [type(loaded[name]).__name__ for name in ("f", "t", "n")] == ["Parameter", "Parameter", "Tensor"]
    assert [loaded[name].requires_grad for name in ("f", "t", "n", "product")] == [False, True, True, True]
    assert loaded["t"] is loaded["again"]
    assert (loaded["t"].partition, loaded["t"].scale) == (1, 0.5)
    assert type(loaded["t"].scale) is float
    assert type(trained.scale) is np.float64
    assert [change.path for change in checkpoint.changes] == ["['f']", "['t'].scale", "['n']"]
    assert_same(loaded["t"].detach(), trained.detach())


def test_tensor_in_the_attribute_of_a_tensor_is_compacted_too():
    weight, large = torch.ones(3), torch.arange(10_000.0)
    weight.mean = large[:1]
    checkpoint = nd.to_checkpoint([weight])
    assert len(save(checkpoint.state)) < OVERHEAD
    assert_same(load(save(checkpoint.state))[0].mean, torch.zeros(1))
    assert weight.mean.untyped_storage().nbytes() == large.nbytes


def test_attribute_that_cannot_be_saved_is_named():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.loader = lambda: 0
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.to_checkpoint({"w": weight})
    assert error.value.path == "['w'].loader"


def test_subclasses_of_tensor_become_plain_tensors_over_the_same_memory():
    whole = torch.arange(1000.0)
    colored = whole.as_subclass(Colored)
    colored.hue = np.float32(0.5)
    assert refused_by_torch([colored])
    parameter = torch.nn.Parameter(colored, requires_grad=False)
    tree = [colored, parameter, Weight(torch.ones(3)), whole]
    checkpoint = nd.to_checkpoint(tree)
    kinds = [torch.Tensor, torch.nn.Parameter, torch.nn.Parameter, torch.Tensor]
    loaded = load(save(checkpoint.state))
    assert [type(tensor) for tensor in loaded] == kinds
    assert loaded[0].hue == 0.5
    assert checkpoint.state[0].data_ptr() == whole.data_ptr() == checkpoint.state[1].data_ptr()
    assert same_storage(loaded[0], loaded[1], loaded[3])
    assert type(colored) is Colored
    assert (checkpoint.changes[0].was, checkpoint.changes[0].now) == ("test_checkpoint.Colored", "torch.Tensor")


def _fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


def _jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


@pytest.mark.parametrize(
    ("make", "why", "hint"),
    [
        (lambda: Wrapper(torch.ones(3)), "__torch_dispatch__", "plain tensors"),
        (_fake, "a fake tensor", "empty_like"),
        (_jagged, "import torch.nested", "unbind"),
        (torch.nn.UninitializedParameter, "it has no shape yet", "forward"),
        (lambda: torch.ones(3).to_mkldnn(), "_mkldnn", "to_dense"),
        (lambda: torch._efficientzerotensor((3,)), "zero tensor", "zeros_like"),
        (lambda: torch.ones(8, dtype=torch.uint8).view(torch.uint4), "torch.uint4", "view(torch.uint8)"),
    ],
    ids=["wrapper", "fake", "jagged", "uninitialized", "mkldnn", "zero", "uint4"],
)
def test_tensor_that_cannot_be_loaded_is_refused_with_its_path(make, why, hint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors and mkldnn are prototypes
        tensor = make()
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.to_checkpoint({"w": tensor})
    assert error.value.path == "['w']"
    assert type(tensor).__name__ in error.value.fact
    assert why in error.value.fact
    assert hint in error.value.hint


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.eye(4).to_sparse_bsr(2),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(1000, device="meta")[:1],
        lambda: torch.nn.Buffer(torch.ones(3)),
    ],
    ids=["coo", "csr", "bsr", "quantized", "nested", "meta", "meta view", "buffer"],
)
def test_tensor_that_torch_can_save_is_left_alone(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse, quantized and nested tensors are prototypes or deprecated
        tensor = make()
        checkpoint = nd.to_checkpoint({"w": tensor})
        assert checkpoint.state["w"] is tensor
        assert checkpoint.changes == ()
        loaded = load(save(checkpoint.state))["w"]
    assert (loaded.shape if not loaded.is_nested else None) == (tensor.shape if not tensor.is_nested else None)
    assert (loaded.layout, loaded.dtype, loaded.device) == (tensor.layout, tensor.dtype, tensor.device)


# ---- training ----


def trained_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters(), lr=float(np.float64(0.1)))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    return model, optimizer


def test_state_of_a_module_needs_no_change_and_comes_back():
    model, _ = trained_model()
    state = model.state_dict()
    checkpoint = nd.to_checkpoint(state)
    assert checkpoint.changes == ()
    assert str(checkpoint) == "no changes"
    assert all(checkpoint.state[name] is tensor for name, tensor in state.items())
    loaded = load(save(checkpoint.state))
    assert loaded._metadata == state._metadata
    assert_same(loaded, state)
    assert loaded["0.weight"].data_ptr() == loaded["2.weight"].data_ptr()
    assert trained_model()[0].load_state_dict(loaded) == ([], [])


def test_training_goes_on_from_a_checkpoint_that_plain_torch_refuses():
    model, optimizer = trained_model()
    optimizer.param_groups[0]["lr"] = np.float64(0.05)
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": np.float32(0.25),
        "args": argparse.Namespace(out=pathlib.PurePosixPath("runs/1"), dtype=np.float32),
        "rng": {"numpy": np.random.get_state(legacy=True), "torch": torch.get_rng_state()},
        "history": collections.defaultdict(list, loss=[np.float64(1.5), np.float64(1.25)]),
    }
    assert refused_by_torch(tree)
    loaded = round_trip(tree)
    other, other_optimizer = trained_model()
    other.load_state_dict(loaded["model"])
    other_optimizer.load_state_dict(loaded["optimizer"])
    assert type(other_optimizer.param_groups[0]["lr"]) is float
    batch = torch.randn(8, 4)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.zero_grad()
        m(batch).sum().backward()
        o.step()
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert loaded["args"] == {"out": "runs/1", "dtype": "float32"}
    assert loaded["history"] == {"loss": [1.5, 1.25]}
    assert_same(loaded["rng"]["torch"], tree["rng"]["torch"])


# ---- what is said ----


def test_changes_are_a_table_in_the_order_of_the_tree():
    column = np.zeros((1000, 1000))[:, 0]
    tree = {"optim": {"lr": np.float64(0.1)}, "mean": column, "w": torch.zeros(10_000)[:1], "where": Point(Level.HIGH)}
    checkpoint = nd.to_checkpoint(tree)
    assert str(checkpoint).splitlines() == [
        "path             was                    now               why",
        "['optim']['lr']  numpy.float64          float             refused by weights_only",
        "['mean']         f64[1000](numpy)       f64[1000](torch)  refused by weights_only; "
        "its storage has 7,992,008 bytes, it uses 8,000",
        "['w']            f32[1](torch)          f32[1](torch)     its storage has 40,000 bytes, it uses 4",
        "['where']        test_checkpoint.Point  dict              refused by weights_only; its fields by name",
        "['where'].x      test_checkpoint.Level  int               refused by weights_only; the value of 3",
        "5 changes, 8,024,004 bytes saved",
    ]
    assert str(checkpoint.changes) == str(checkpoint)
    assert repr(checkpoint) == "<checkpoint with 5 changes, 8,024,004 bytes saved>"
    assert pickle.loads(pickle.dumps(checkpoint.changes)).nbytes_saved == 8_024_004
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.changes[0].path = ""


def test_bytes_saved_are_those_that_the_file_is_smaller():
    base = torch.arange(1_000_000)
    tree = {"a": base[:1000], "b": base[500:2000], "c": base[:, None][3000:3010], "d": torch.ones(5)}
    checkpoint = nd.to_checkpoint(tree)
    saved = len(save(tree)) - len(save(checkpoint.state))
    assert abs(saved - checkpoint.changes.nbytes_saved) < OVERHEAD


def test_trace_sees_the_copies_and_forbids_them():
    tree = {"a": [torch.zeros(10_000)[:1]], "b": np.ones(3)}
    with nd.trace() as seen:
        nd.to_checkpoint(tree)
    assert [(record.function, record.nbytes_copied) for record in seen] == [("to_torch", 0), ("to_checkpoint", 4)]
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError, match="to_checkpoint: ") as error:
        nd.to_checkpoint(tree)
    assert error.value.path == "['a'][0]"


# ---- any tree ----


def plain_of(leaf: Any) -> Any:
    """What must come back, worked out without ndtorch."""
    if isinstance(leaf, np.ndarray):
        return tensor_holding(leaf)
    return leaf.item() if isinstance(leaf, np.generic) else leaf


scalars = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=3), st.booleans(), st.none(), st.binary(min_size=1)
)
numpy_scalars = st.sampled_from([np.float32(0.1), np.int8(-3), np.bool_(False), np.str_("é"), np.complex64(1 - 2j)])
leaves = st.one_of(scalars, numpy_scalars, arrays(max_side=3), tensors(max_side=3))
containers: Callable[[Any], Any] = lambda inner: st.one_of(  # noqa: E731
    st.lists(inner, max_size=3),
    st.dictionaries(st.text(max_size=2), inner, max_size=3),
    st.tuples(inner, inner),
    st.dictionaries(st.integers(), inner, max_size=2).map(collections.OrderedDict),
)


@given(st.recursive(leaves, containers, max_leaves=8))
def test_any_tree_comes_back_as_its_plain_values(tree):
    expected = optree.tree_map(plain_of, tree, none_is_leaf=True)
    checkpoint = nd.to_checkpoint(tree)
    assert_same(checkpoint.state, expected)
    assert_same(load(save(checkpoint.state)), expected)
    assert nd.to_checkpoint(checkpoint.state).changes == ()


@st.composite
def views(draw: st.DrawFn) -> list[torch.Tensor]:
    """Views into one or two storages, in any places and strides."""
    bases = [torch.arange(10_000), torch.arange(5000, 6000)]
    found = []
    for _ in range(draw(st.integers(1, 6))):
        base = draw(st.sampled_from(bases))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        strides = [draw(st.sampled_from([0, 1, 2, 5, 30])) for _ in shape]
        reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
        found.append(base.as_strided(shape, strides, draw(st.integers(0, min(len(base) - reach - 1, 200)))))
    return found


@given(views())
def test_any_views_keep_their_values_and_exactly_their_ties(found):
    checkpoint = nd.to_checkpoint(found)
    loaded = load(save(checkpoint.state))
    assert_same(loaded, found)
    for i, a in enumerate(found):
        for j in range(i):
            common = np.intersect1d(byte_addresses(a), byte_addresses(found[j]))
            after = np.intersect1d(byte_addresses(loaded[i]), byte_addresses(loaded[j]))
            assert common.size == after.size
    held = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in loaded}.values())
    assert held <= sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in found}.values())
    assert all(
        state is tensor or not tensor.numel() or state.data_ptr() != tensor.data_ptr()
        for state, tensor in zip(checkpoint.state, found, strict=True)
    )
