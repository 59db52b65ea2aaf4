"""Structures: every container comes back as itself, leaf by leaf, and every error says where."""

from __future__ import annotations

import dataclasses
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import optree
import pytest
import torch
from comparison import assert_same, assert_shares, tensor_holding
from strategies import filled, read_only

import ndtorch as nd


class Point(NamedTuple):
    x: Any
    y: Any = None


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    image: Any
    parts: Any = ()


@dataclasses.dataclass
class Checked:
    """Its __init__ accepts arrays only, and must not run again for tensors."""

    data: Any
    size: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.data, np.ndarray), "only arrays"
        self.size = self.data.size


@dataclasses.dataclass(frozen=True)
class Child(Frozen):
    extra: Any = None


class Batch(dict):
    """A subclass of dict with a state and an __init__ of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Bunch(tuple):
    """A tuple with an attribute beside its items, made as scipy.stats makes its results."""

    _fields = ("statistic", "pvalue")
    _extra_fields = ("df",)

    def __new__(cls, statistic: Any, pvalue: Any, **extra: Any) -> Bunch:
        return tuple.__new__(cls, (statistic, pvalue))

    def __init__(self, statistic: Any, pvalue: Any, **extra: Any) -> None:
        vars(self).update(extra)


class Node:
    """A container that nothing but its registration tells apart from any object."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


optree.register_pytree_node(
    Node,
    lambda node: ((node.left, node.right), None, ("left", "right")),
    lambda _, children: Node(*children),
    path_entry_type=optree.GetAttrEntry,
    namespace="ndtorch",
)


def batch(**items: Any) -> Batch:
    made = Batch("train")
    made.update(items)
    return made


A, B = np.arange(3.0), np.array([[1, 2], [3, 4]])

STRUCTURES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], list[Any]]]] = {
    "dict": (lambda a, b: {"b": b, "a": a}, lambda s: [s["a"], s["b"]]),
    "dict with odd keys": (lambda a, b: {1: a, (2, "x"): b, None: "y"}, lambda s: [s[1], s[2, "x"]]),
    "list": (lambda a, b: [a, b], list),
    "tuple": (lambda a, b: (a, b), list),
    "named tuple": (Point, list),
    "collections.namedtuple": (Pair, list),
    "OrderedDict": (lambda a, b: OrderedDict(b=b, a=a), lambda s: [s["a"], s["b"]]),
    "defaultdict": (lambda a, b: defaultdict(list, b=b, a=a), lambda s: [s["a"], s["b"]]),
    "deque": (lambda a, b: deque([a, b], maxlen=5), list),
    "dataclass": (Sample, lambda s: [s.image, s.label]),
    "frozen dataclass with slots": (Frozen, lambda s: [s.image, s.parts]),
    "dataclass with a parent": (lambda a, b: Child(a, (), b), lambda s: [s.image, s.extra]),
    "subclass of dict": (lambda a, b: batch(b=b, a=a), lambda s: [s["a"], s["b"]]),
    "tuple with attributes": (lambda a, b: Bunch(a, "text", df=b), lambda s: [s[0], s.df]),
    "registered node": (Node, lambda s: [s.left, s.right]),
    "nested": (
        lambda a, b: {"x": [Sample(Frozen(a), Point((b,)))]},
        lambda s: [s["x"][0].image.image, s["x"][0].label.x[0]],
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_comes_back_as_itself_with_shared_leaves(name: str) -> None:
    make, leaves_of = STRUCTURES[name]
    source = make(A, B)
    result = nd.to_torch(source)
    assert type(result) is type(source)
    assert result is not source
    for tensor, array in zip(leaves_of(result), (A, B), strict=True):
        assert_same(tensor, tensor_holding(array))
        assert_shares(tensor, array)
    for back in (nd.to_numpy(result), nd.to_numpy(result, like=source)):
        assert type(back) is type(source)
        for array, original in zip(leaves_of(back), (A, B), strict=True):
            assert_same(array, original)
            assert_shares(array, original)
    assert all(leaf is original for leaf, original in zip(leaves_of(source), (A, B), strict=True)), "the source changed"


@pytest.mark.parametrize("name", STRUCTURES)
def test_options_reach_every_leaf_of_a_structure(name: str) -> None:
    make, leaves_of = STRUCTURES[name]
    assert_same(leaves_of(nd.to_torch(make(A, B), dtype="float32")), [torch.arange(3.0), torch.tensor(B).float()])
    floats, whole = leaves_of(nd.to_torch(make(A, B), float_dtype="float32"))
    assert (floats.dtype, whole.dtype) == (torch.float32, torch.int64)
    assert_shares(whole, B)


def test_order_and_extras_of_dicts_survive() -> None:
    assert list(nd.to_torch({"z": A, "a": B, 3: A})) == ["z", "a", 3]
    assert list(nd.to_torch(OrderedDict(z=A, a=B))) == ["z", "a"]
    assert nd.to_torch(defaultdict(list, a=A)).default_factory is list
    assert nd.to_torch(batch(a=A)).name == "train"
    assert nd.to_torch(deque([A], maxlen=5)).maxlen == 5
    assert nd.to_torch({}) == {}


def test_init_of_a_dataclass_does_not_run_again() -> None:
    result = nd.to_torch(Checked(A))
    assert_shares(result.data, A)
    assert result.size == 3


def test_dataclass_with_a_missing_field_is_converted_without_it() -> None:
    class_ = dataclasses.make_dataclass("Late", [("a", Any), ("b", Any, dataclasses.field(init=False))])
    result = nd.to_torch(class_(A))
    assert_shares(result.a, A)
    assert not hasattr(result, "b")


def test_text_none_and_python_scalars_pass_through() -> None:
    kept = {"s": "text", "b": b"bytes", "n": None, "i": 3, "f": 1.5, "c": 2j, "t": True}
    for convert in (nd.to_torch, nd.to_numpy):
        result = convert({**kept, "a": A})
        assert all(result[key] is value for key, value in kept.items())
        assert convert({**kept, "a": A}, dtype="float32")["i"] is kept["i"]
        assert_same(convert([None, "a", [1.5, None]]), [None, "a", [1.5, None]])


def test_numpy_scalars_inside_become_tensors() -> None:
    result = nd.to_torch({"f": np.float32(1.5), "b": np.bool_(True), "i": np.int8(3)})
    assert_same(result, {"f": torch.tensor(1.5), "b": torch.tensor(True), "i": torch.tensor(3, dtype=torch.int8)})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([1, 2.5], torch.tensor([1, 2.5])),
        ([[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]])),
        (((1, 2), (3, 4)), torch.tensor([[1, 2], [3, 4]])),
        ([np.float64(1), np.float64(2)], torch.tensor([1, 2], dtype=torch.float64)),
        ([A, A], [tensor_holding(A)] * 2),
        ([A, B], [tensor_holding(A), tensor_holding(B)]),
        ([[1, 2], [3]], [torch.tensor([1, 2]), torch.tensor([3])]),
        ([[1, [2]], 3], [[1, torch.tensor([2])], 3]),
        ([1, A], [1, tensor_holding(A)]),
        ([1, "a"], [1, "a"]),
        ({"x": [1, 2]}, {"x": torch.tensor([1, 2])}),
        ([[[1], [2]], [[3]]], [torch.tensor([[1], [2]]), torch.tensor([[3]])]),
    ],
    ids=repr,
)
def test_list_of_numbers_is_an_array_and_any_other_list_stays_a_list(source: Any, expected: Any) -> None:
    assert_same(nd.to_torch(source), expected)


def test_leaves_of_many_forms_are_converted_each_in_its_way() -> None:
    fields = np.zeros(2, [("a", "f4"), ("b", "i8")])
    masked = np.ma.array([1, 2], mask=[0, 1])
    result = nd.to_torch(
        {"f": fields, "m": [masked], "t": np.array("2024-01-01", "M8[D]"), "s": np.array(["ab"])}, masked="split"
    )
    assert list(result["f"]) == ["a", "b"]
    assert result["m"][0].mask.tolist() == [False, True]
    assert (result["t"].item(), result["s"].tolist()) == (19723, [[97, 98]])


LIKE = {
    "day": np.array(["2024-01-01", "NaT"], "M8[D]"),
    "text": (np.array(["a", "bc"]), "kept", None, 3),
    "fields": [np.array([(1, 2.5)], [("i", "i4"), ("x", "f8")])],
    "masked": np.ma.array([1.5, 2], mask=[0, 1]),
    "swapped": np.arange(3, dtype=np.dtype("f4").newbyteorder("S")),
    "numbers": [1, 2],
    "scalar": np.float32(1.5),
    "large": [2**70, "kept"],
    "point": Point(A, (B,)),
}


def test_like_restores_a_whole_structure() -> None:
    back = nd.to_numpy(nd.to_torch(LIKE, masked="split"), like=LIKE)
    assert_same(back, LIKE)
    assert_shares(back["point"].x, A)
    assert back["text"][1] is LIKE["text"][1]
    assert_same(nd.to_numpy(nd.to_torch(Sample(A, LIKE), masked="split"), like=Sample(A, LIKE)).label, LIKE)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({"image": [1, {"x": object()}]}, "['image'][1]['x']"),
        ([A, A, read_only(np.ones(2))], "[2]"),
        (Sample(image=A, label=(A, read_only(np.ones(2)))), ".label[1]"),
        (Frozen(A, {"k": object()}), ".parts['k']"),
        (Point(A, object()), ".y"),
        (batch(a=A, b=[object()]), "['b'][0]"),
        (Node(A, object()), ".right"),
        (OrderedDict(a=A, b=object()), "['b']"),
        ({3: {"b": np.zeros(2, [("f", "f4"), ("g", [("h", "O")])])}}, "[3]['b']['g']['h']"),
        ([np.ma.array([1], mask=[1])], "[0]"),
        ({"a": [[1, "b"], [2, UserDict(), 4]]}, "['a'][1][1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_error_says_where_in_the_structure_it_happened(source: Any, path: str) -> None:
    with pytest.raises(nd.NdtorchError) as caught:
        nd.to_torch(source, copy=False)
    assert caught.value.path == path
    assert caught.value.__notes__ == [f"at source{path}"]


@pytest.mark.parametrize(
    ("unknown", "remedy"),
    [
        ({1, 2}, "list(source)"),
        (iter([]), "list(source)"),
        (range(3), "list(source)"),
        (UserDict(), "dict(source)"),
        (ChainMap(), "dict(source)"),
        (SimpleNamespace(), "register_pytree_node"),
        (print, "register_pytree_node"),
        (Node, "register_pytree_node"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_container_that_nobody_registered_is_refused_with_the_remedy(unknown: Any, remedy: str) -> None:
    with pytest.raises(nd.UnsupportedTypeError) as refused:
        nd.to_torch([A, unknown])
    assert remedy in refused.value.hint


def test_counter_is_a_dict_of_python_numbers() -> None:
    assert_same(nd.to_torch([A, Counter("aab")])[1], Counter("aab"))


@pytest.mark.parametrize("convert", [nd.to_torch, nd.to_numpy, nd.explain, lambda x: nd.shares_memory(x, x)])
def test_structure_that_contains_itself_is_refused(convert: Callable[[Any], Any]) -> None:
    a_list: list[Any] = [A]
    a_list.append(a_list)
    a_dict: dict[str, Any] = {"a": A}
    a_dict["self"] = [a_dict]
    numbers: list[Any] = [1]
    numbers[0] = numbers
    sample = Sample(A)
    sample.label = sample
    for source in (a_list, a_dict, numbers, sample):
        with pytest.raises(nd.NdtorchError, match="contains itself"):
            convert(source)


@pytest.mark.parametrize("depth", [200, 100_000])
def test_deep_nesting_works_or_is_refused_but_never_crashes(depth: int) -> None:
    for inner in (A, 1.5):
        source: Any = inner
        for _ in range(depth):
            source = [source]
        if depth > 1000:
            with pytest.raises(nd.NdtorchError, match="nested too deeply"):
                nd.to_torch(source)
        elif inner is A:
            result = nd.to_torch(source)
            for _ in range(depth):
                (result,) = result
            assert_shares(result, A)


def test_one_array_in_two_places_is_shared_in_both() -> None:
    first, second = nd.to_torch([A, {"again": A}])
    assert_shares(first, A)
    assert_shares(second["again"], A)


def test_structure_is_never_changed_and_its_leaves_never_replaced_in_place() -> None:
    source = {"a": [A, B], "s": Sample(filled("f4"), batch(x=A)), "n": [1, 2]}
    nd.to_torch(source, dtype="float32", copy=True)
    assert source["a"][0] is A
    assert source["s"].label["x"] is A
    assert isinstance(source["s"].image, np.ndarray)
    assert source["n"] == [1, 2]


def test_structure_with_one_unshareable_leaf_is_refused_before_anything_is_shared() -> None:
    with pytest.raises(nd.CopyRequiredError) as caught:
        nd.to_torch({"a": A, "b": A[::-1]}, copy=False)
    assert caught.value.path == "['b']"
    assert "negative stride" in caught.value.reason
