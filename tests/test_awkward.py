"""awkward arrays: what each layout becomes, what is shared, and the way back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from columns import as_lists
from comparison import assert_independent, assert_same, assert_shares

import ndtorch as nd
from ndtorch.foreign import awkward as room

ak = pytest.importorskip("awkward", reason="awkward is not installed")

Index64 = ak.index.Index64


def numbers(values: Any) -> Any:
    return ak.contents.NumpyArray(np.asarray(values))


def assert_round_trip(source: Any) -> None:
    back = nd.to_numpy(nd.to_torch(source, masked="split"), like=source)
    assert back.type == source.type
    assert ak.array_equal(back, source, equal_nan=True)


# ---- numbers ----


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "uint64", "float32", "float64", "complex128"])
def test_regular_numbers_are_shared(dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    array = ak.from_numpy(values)
    tensor = nd.to_torch(array)
    assert_same(nd.to_numpy(tensor), values)
    assert_shares(tensor, values)
    assert nd.explain(array).shares
    assert_independent(nd.to_torch(array, copy=True), values)
    assert nd.to_numpy(array).__array_interface__["data"] == values.__array_interface__["data"]
    assert_round_trip(array)
    assert_round_trip(ak.from_numpy(values, regulararray=True))


def test_read_only_memory_stays_read_only():
    values = np.arange(3)
    values.flags.writeable = False
    assert nd.explain(ak.from_numpy(values)).reason == "it is read-only"


def test_times_are_int64():
    array = ak.Array(np.array(["2024-02-29", "NaT"], "M8[D]"))
    assert nd.to_torch(array).tolist() == [19782, -(2**63)]
    assert_round_trip(array)


def test_options_apply_inside_structures():
    result = nd.to_torch({"x": ak.Array([[1.5], []])}, dtype="float32", device="cpu")
    assert_same(result, {"x": [torch.tensor([1.5]), torch.tensor([])]})


# ---- lists ----


def test_lists_share_one_content():
    values = np.arange(6)
    array = ak.Array(ak.contents.ListOffsetArray(Index64(np.array([1, 3, 3, 6])), numbers(values)))
    rows = nd.to_torch(array)
    assert [row.tolist() for row in rows] == array.to_list()
    assert_shares(rows[2], values)
    assert nd.explain(array).shares
    deep = ak.Array([[[1], []], [], [[2, 3]]])
    assert as_lists(nd.to_torch(deep)) == deep.to_list()
    for source in (array, deep, ak.Array(np.zeros((0, 2)))[[]]):
        assert_round_trip(source)


def test_lists_in_another_order_are_made_anew():
    array = ak.Array([[1, 2, 3], [], [4]])[[2, 0]]
    plan = nd.explain(array)
    assert plan.leaves[".content"].reason == "its lists do not lie one after the other"
    assert as_lists(nd.to_torch(array)) == [[4], [1, 2, 3]]
    assert_round_trip(array)


def test_rows_of_one_length_are_one_more_dimension():
    array = ak.to_regular(ak.Array([[1, 2], [3, 4], [5, 6]]))[1:]
    assert_same(nd.to_torch(array), torch.tensor([[3, 4], [5, 6]]))
    lists = ak.Array(ak.contents.RegularArray(ak.Array([[1], [], [2], [3, 4]]).layout, 2))
    assert as_lists(nd.to_torch(lists)) == lists.to_list()
    for source in (array, lists):
        assert_round_trip(source)


# ---- records ----


def test_records_are_a_table():
    array = ak.Array([{"x": 1, "y": [1.5]}, {"x": 2, "y": []}])
    assert as_lists(nd.to_torch(array)) == array.to_list()
    assert nd.explain(array).shares
    assert as_lists(nd.to_torch(array[1:])) == array[1:].to_list()
    picked = array[[1, 0]]
    assert as_lists(nd.to_torch(picked)) == picked.to_list()
    pairs = ak.Array([(1, 2.5), (3, 4.5)])
    assert list(nd.to_torch(pairs)) == ["0", "1"]
    for source in (array, picked, pairs):
        assert_round_trip(source)


def test_one_record():
    record = ak.Array([{"x": 1, "y": [1.5]}])[0]
    result = nd.to_torch(record)
    assert_same(result, {"x": torch.tensor(1), "y": torch.tensor([1.5], dtype=torch.float64)})
    assert nd.to_numpy(result, like=record).to_list() == record.to_list()
    with pytest.raises(nd.UnsupportedTypeError, match="its field 'x' is missing"):
        nd.to_torch(ak.Array([{"x": None}])[0])


# ---- missing values ----


def options() -> dict[str, Any]:
    mask = np.array([0, 1, 0, 1], np.int8)
    bits = ak.index.IndexU8(np.array([0b0101], np.uint8))
    return {
        "indexed": ak.Array([1, None, 3, None]),
        "byte mask": ak.Array(ak.contents.ByteMaskedArray(ak.index.Index8(mask), numbers([1, 2, 3, 4]), False)),
        "byte mask, True valid": ak.mask(ak.Array([1, 2, 3, 4]), [True, False, True, False]),
        "bit mask": ak.Array(ak.contents.BitMaskedArray(bits, numbers([1, 2, 3, 4]), True, 4, True)),
    }


@pytest.mark.parametrize("name", options())
def test_missing_values_are_an_error_unless_asked_for(name):
    array = options()[name]
    with pytest.raises(nd.UnsupportedTypeError, match="2 of its 4 values are missing, the first at index 1"):
        nd.to_torch(array)
    split = nd.to_torch(array, masked="split")
    assert as_lists(split) == [1, None, 3, None]
    assert nd.explain(array, masked="split").leaves[".data"].shares == (name != "indexed")
    assert nd.to_torch(array, masked="nan").isnan().tolist() == [False, True, False, True]
    assert nd.to_numpy(array).tolist() == [1, None, 3, None]
    assert_round_trip(array)


def test_option_without_missing_values_is_a_plain_tensor():
    array = ak.Array(ak.contents.UnmaskedArray(numbers([1, 2])))
    assert_same(nd.to_torch(array), torch.tensor([1, 2]))
    assert nd.explain(array).shares
    assert_round_trip(array)
    assert_round_trip(ak.Array([1, None])[:1])


def test_missing_lists_rows_and_records():
    for source in (
        ak.Array([[1, 2], None, [3]]),
        ak.Array([[1, None], None, []]),
        ak.Array([{"x": 1}, None]),
        ak.Array([None, [[1]], None]),
        ak.Array([None, None, 1])[:2],
    ):
        assert as_lists(nd.to_torch(source, masked="split")) == source.to_list()
        assert_round_trip(source)
    rows = ak.to_regular(ak.Array([[1, None], [3, 4]]))
    assert as_lists(nd.to_torch(rows, masked="split")) == rows.to_list()
    assert_round_trip(rows)


def test_categories_become_their_codes():
    for codes in ([0, 1, 0], [0, -1, 1]):
        kind = ak.contents.IndexedOptionArray if -1 in codes else ak.contents.IndexedArray
        layout = kind(Index64(np.array(codes)), ak.Array(["a", "b"]).layout, parameters={"__array__": "categorical"})
        array = ak.Array(layout)
        result = nd.to_torch(array, masked="split")
        assert as_lists(result) == [None if code < 0 else code for code in codes]
        assert nd.to_numpy(result, like=array).to_list() == array.to_list()


# ---- refused, and the rest ----


def test_what_has_no_form_is_refused_with_the_call_that_helps():
    for source, hint in (
        (ak.Array(["a"]), "to_categorical"),
        (ak.Array([b"a"]), "to_categorical"),
        (ak.Array([1, "a"]), "enforce_type"),
        (ak.Array([None]), "enforce_type"),
        (ak.to_backend(ak.Array([1]), "typetracer"), "made for"),
        (ak.Array([{"x": "a"}]), "to_categorical"),
    ):
        with pytest.raises(nd.UnsupportedTypeError) as caught:
            nd.to_torch(source)
        assert hint in caught.value.hint


def test_hint_for_what_is_all_missing_works():
    array = ak.enforce_type(ak.Array([None]), "?float64")
    assert as_lists(nd.to_torch(array, masked="split")) == [None]


def test_builder_and_layout_and_empty():
    builder = ak.ArrayBuilder()
    builder.real(1.5)
    assert_same(nd.to_torch(builder), torch.tensor([1.5], dtype=torch.float64))
    assert "copy" in nd.explain(builder).reason
    layout = ak.Array([1.5]).layout
    assert nd.to_numpy(nd.to_torch(layout), like=layout).is_equal_to(layout)
    assert_same(nd.to_torch(ak.Array([])), torch.empty(0, dtype=torch.float64))
    assert_round_trip(ak.Array([]))


def test_way_back_names_what_does_not_fit():
    with pytest.raises(nd.ShapeMismatchError, match="other columns"):
        nd.to_numpy({"y": torch.zeros(1)}, like=ak.Array([{"x": 1}]))
    with pytest.raises(nd.ShapeMismatchError):
        nd.to_numpy(torch.zeros(2, 3), like=ak.to_regular(ak.Array([[1, 2]])))
    with pytest.raises(nd.UnsupportedTypeError, match="cannot be of type string"):
        nd.to_numpy(torch.zeros(1), like=ak.Array(["a"]))


def test_wrapped_array_is_awkward():
    assert ak.array_equal(room.wrap(np.array([1.5]), ak.Array([1])), ak.Array([1.5]))


# ---- against awkward's own lists ----


def random_value(rng: random.Random, kind: Any, nulls: float) -> Any:
    if rng.random() < nulls:
        return None
    if isinstance(kind, list):
        return [random_value(rng, kind[0], nulls) for _ in range(rng.randint(0, 3))]
    if isinstance(kind, dict):
        return {name: random_value(rng, part, nulls) for name, part in kind.items()}
    return {int: rng.randint(-9, 9), float: rng.random(), bool: rng.random() < 0.5}[kind]


def random_kind(rng: random.Random, depth: int = 2) -> Any:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([int, float, bool])
    inside = random_kind(rng, depth - 1)
    return rng.choice([[inside], {"a": inside, "b": random_kind(rng, depth - 1)}])


def whole(kind: Any) -> Any:
    """A value in which everything is there, so that awkward knows every dtype."""
    if isinstance(kind, list):
        return [whole(kind[0])]
    return {name: whole(part) for name, part in kind.items()} if isinstance(kind, dict) else kind(1)


@pytest.mark.parametrize("seed", range(100))
def test_any_array_holds_what_awkward_says_and_finds_the_way_back(seed):
    rng = random.Random(seed)
    kind = random_kind(rng)
    nulls = rng.choice([0, 0.3])
    values = [random_value(rng, kind, nulls) for _ in range(rng.randint(0, 12))]
    array = ak.Array([*values, whole(kind)])
    start = rng.randint(0, len(values))
    array = array[start:]
    how = rng.choice(["whole", "reversed", "picked", "packed"])
    if how == "reversed":
        array = array[::-1]
    elif how == "picked":
        array = array[rng.choices(range(len(array)), k=5)]
    elif how == "packed":
        array = ak.to_packed(array)
    expected = array.to_list()
    assert as_lists(nd.to_torch(array, masked="split")) == expected
    assert len(as_lists(nd.to_numpy(array))) == len(expected)
    assert nd.explain(array, masked="split").error is None
    back = nd.to_numpy(nd.to_torch(array, masked="split"), like=array)
    assert back.to_list() == expected
    assert back.type == array.type
    assert array.to_list() == expected
