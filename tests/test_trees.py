"""Structures that the native core takes apart: what it does must be what the Python functions do."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, assert_shares
from hypothesis import given, settings
from hypothesis import strategies as st

import ndtorch as nd
from ndtorch import _convert
from ndtorch._options import numpy_options, torch_options

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Sample:
    image: Any
    label: Any


def in_python(source: Any, **options: Any) -> Any:
    return _convert._convert(source, torch_options(**options))


ARRAYS = st.sampled_from(
    [
        np.arange(3.0),
        np.arange(3, dtype=np.int32),
        np.ones((2, 2), np.float32)[::-1],
        np.arange(4, dtype=">f4"),
        np.ones(2, np.complex64),
        np.array(["2024-01-01"], "datetime64[D]"),
        np.zeros(0),
        np.array(1.5),
    ]
)
KEPT = st.sampled_from([None, "text", b"bytes", 3, 2.5, True, 1j, np.str_("numpy"), np.float32(1.5), np.int64(7)])
NUMBERS = st.lists(st.integers(0, 9), max_size=3)
LEAVES = ARRAYS | KEPT | NUMBERS | NUMBERS.map(tuple)


def containers(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.sampled_from(["b", "a", "c", 1, (2, 3)])
    return (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(keys, inside, max_size=3)
        | st.dictionaries(st.sampled_from("ab"), inside, max_size=2).map(OrderedDict)
        | st.tuples(inside, inside).map(lambda pair: Pair(*pair))
        | st.tuples(inside, inside).map(lambda pair: Sample(*pair))
    )


TREES = st.recursive(LEAVES, containers, max_leaves=12)


def unpack(value: Any) -> Any:
    """Dataclasses compare by identity of their arrays: look at their fields instead."""
    if isinstance(value, Sample):
        return ("Sample", unpack(value.image), unpack(value.label))
    if isinstance(value, Pair):
        return ("Pair", *(unpack(part) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(unpack(part) for part in value)
    if isinstance(value, dict):
        return {key: unpack(part) for key, part in value.items()}
    return value


@settings(max_examples=300, deadline=None)
@given(TREES, st.sampled_from([{}, {"float_dtype": "float32"}, {"copy": True}, {"float_dtype": torch.float64}]))
def test_any_tree_becomes_what_python_makes_of_it(tree: Any, options: dict[str, Any]) -> None:
    refusal = nd.explain(tree, **options).error
    if refusal is not None:
        with pytest.raises(type(refusal)) as raised:
            nd.to_torch(tree, **options)
        assert (raised.value.fact, raised.value.path) == (refusal.fact, refusal.path)
        return
    got = nd.to_torch(tree, **options)
    assert_same(unpack(got), unpack(in_python(tree, **options)))
    back = nd.to_numpy(got)
    assert_same(unpack(back), unpack(_convert._convert(got, numpy_options())))


def test_arrays_in_a_tree_share_their_memory() -> None:
    tree = {"a": np.zeros(3), "b": [np.zeros(2), (np.zeros((2, 2))[:, ::2], {"c": np.zeros(1)})]}
    got = nd.to_torch(tree)
    assert_shares(got["a"], tree["a"])
    assert_shares(got["b"][0], tree["b"][0])
    assert_shares(got["b"][1][0], tree["b"][1][0])
    assert_shares(got["b"][1][1]["c"], tree["b"][1][1]["c"])


def test_tensors_in_a_tree_stay_themselves() -> None:
    tensor, sparse = torch.zeros(2), torch.eye(2).to_sparse()
    got = nd.to_torch({"plain": tensor, "sparse": [sparse], "array": np.zeros(1)})
    assert got["plain"] is tensor
    assert got["sparse"][0] is sparse


def test_a_dict_keeps_its_order_and_its_keys() -> None:
    tree = {"z": np.zeros(1), 3: np.zeros(1), ("a", 1): "kept", None: [np.zeros(1)]}
    assert list(nd.to_torch(tree)) == list(tree)
    assert list(nd.to_numpy(nd.to_torch(tree))) == list(tree)


def test_an_error_names_the_leaf_in_a_tree() -> None:
    tree = {"fine": np.zeros(2), "batch": [np.zeros(1), {"bad": np.ma.masked_equal([1, 9], 9)}]}
    with pytest.raises(nd.UnsupportedTypeError) as raised:
        nd.to_torch(tree)
    assert raised.value.path == "['batch'][1]['bad']"


def test_a_structure_inside_itself_is_an_error() -> None:
    loop: list[Any] = [np.zeros(1)]
    loop.append(loop)
    table: dict[str, Any] = {"a": np.zeros(1)}
    table["self"] = table
    for endless in (loop, table, (loop,)):
        with pytest.raises(nd.NdtorchError, match="contains itself"):
            nd.to_torch(endless)


def test_very_deep_structures_do_not_crash() -> None:
    deep: Any = np.zeros(1)
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(nd.NdtorchError, match="nested too deeply"):
        nd.to_torch(deep)
    while isinstance(deep, list):  # taken apart by hand: freeing it whole recurses in Python
        deep = deep.pop()


class Mischief:
    """Changes the container it is in when it is asked for its memory."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.change()
        return np.zeros(1)


@pytest.mark.parametrize("grow", [True, False])
def test_a_list_that_changes_meanwhile_does_no_harm(grow: bool) -> None:
    items: list[Any] = [np.zeros(1), None, np.zeros(2), np.zeros(3)]
    items[1] = Mischief((lambda: items.append(np.zeros(1))) if grow else (lambda: items.__delitem__(slice(2, None))))
    got = nd.to_torch(items)
    assert all(isinstance(part, torch.Tensor) for part in got)


@pytest.mark.parametrize("grow", [True, False])
def test_a_dict_that_changes_meanwhile_does_no_harm(grow: bool) -> None:
    table: dict[Any, Any] = {"a": np.zeros(1), "b": None, "c": np.zeros(2)}
    counter = iter(range(1000))
    table["b"] = Mischief((lambda: table.update({next(counter): "new"})) if grow else (lambda: table.pop("c", None)))
    got = nd.to_torch(table)
    assert isinstance(got["a"], torch.Tensor)


def test_ctrl_c_within_a_leaf_gets_through() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nd.to_torch([np.zeros(1), Mischief(interrupt)])


def test_a_traced_tree_is_seen_leaf_by_leaf() -> None:
    tree = {"a": np.zeros(3), "b": (np.zeros(2)[::-1], "text")}
    with nd.trace() as seen:
        nd.to_torch(tree)
    assert [(record.path, record.shared) for record in seen] == [("['a']", True), ("['b'][0]", False)]
