"""Lists of samples: of which kind they are is decided from all of them, and ragged ones are padded or stay lists."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arrays

import ndtorch as nd


def batches(data: Any, batch_size: int = 3, **options: Any) -> list[Any]:
    return list(nd.Loader(data, batch_size, threads=0, **options))


def orders(n: int, batch_size: int = 3, **options: Any) -> list[list[int]]:
    return [batch.tolist() for batch in nd.Loader(torch.arange(n), batch_size, threads=0, **options)]


# ---- equal arrays ----


@st.composite
def equal_arrays(draw: st.DrawFn) -> list[Any]:
    """Arrays of one shape, each with a layout and a dtype of its own; some are tensors."""
    first = draw(arrays(max_side=3))
    others = [draw(arrays(max_side=3)) for _ in range(draw(st.integers(0, 4)))]
    return [first, *(np.resize(other, first.shape).astype(other.dtype) for other in others if other.size)]


@settings(max_examples=150)
@given(equal_arrays(), st.booleans(), st.sampled_from([None, "float16"]))
def test_equal_arrays_are_stacked_in_the_dtype_that_holds_all(items: list[Any], shuffle: bool, cast: Any) -> None:
    with np.errstate(all="ignore"):
        whole = nd.stack(items)
    for batch, rows in zip(
        batches(items, shuffle=shuffle, float_dtype=cast), orders(len(items), shuffle=shuffle), strict=True
    ):
        assert batch.dtype == (whole if cast is None else nd.to_torch(whole, float_dtype=cast)).dtype
        if cast is None:
            assert_same(batch, whole[rows])


def test_dtype_of_a_batch_does_not_depend_on_who_is_in_it() -> None:
    items = [np.zeros(2, np.float32), torch.zeros(2, dtype=torch.int64), np.zeros(2, ">i2"), np.zeros(2, bool)]
    assert {batch.dtype for batch in batches(items, 1)} == {torch.float64}
    assert {batch.dtype for batch in batches(items, 1, float_dtype="bfloat16")} == {torch.bfloat16}


def test_array_of_arrays_and_a_deque_are_lists_too() -> None:
    objects = np.empty(4, object)
    objects[:] = [np.full((2,), i) for i in range(4)]
    for source in (objects, deque(objects), list(objects)):
        assert_same(batches(source, 2), [torch.tensor([[0, 0], [1, 1]]), torch.tensor([[2, 2], [3, 3]])])


def test_list_of_times_comes_as_their_integers() -> None:
    days = list(np.array(["2024-01-01", "NaT", "2024-01-03"], "M8[D]"))
    assert_same(batches(days), [nd.to_torch(np.array(days))])
    assert_same(batches([np.array([day]) for day in days]), [nd.to_torch(np.array(days))[:, None]])


# ---- ragged arrays ----

RAGGED: dict[str, list[Any]] = {
    "arrays": [np.arange(n, dtype=np.float32) for n in (3, 0, 5, 1, 2)],
    "rows of arrays": [np.arange(2.0 * n).reshape(n, 2) for n in (3, 0, 5, 1, 2)],
    "tensors": [torch.arange(n) for n in (3, 0, 5, 1, 2)],
    "several dtypes and layouts": [
        np.arange(3, dtype=">f4")[::-1],
        torch.arange(2),
        np.arange(10)[::2],
        np.zeros(1, bool),
        np.broadcast_to(np.float64(7), 4),
    ],
    "lists of numbers": [[1, 2, 3], [], [4, 5, 6, 7, 8], [9], [10, 11]],
    "lists of rows": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], [], [[7.0, 8.0]], [[9.0, 1.0]]],
}


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("cast", [None, "float16"])
def test_ragged_rows_are_a_list_of_tensors(kind: str, cast: Any) -> None:
    source = RAGGED[kind]
    promoted = torch.cat([nd.to_torch(each).flatten() for each in source if len(each)]).dtype
    if cast is not None and promoted.is_floating_point:
        promoted = torch.float16
    width = next(np.shape(each)[1:] for each in source if len(each))
    for batch, rows in zip(batches(source, 2, shuffle=True, float_dtype=cast), orders(5, 2, shuffle=True), strict=True):
        assert type(batch) is list
        expected = [tensor_holding(nd.to_numpy(source[row])).reshape(-1, *width).to(promoted) for row in rows]
        assert_same(batch, expected)


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("cast", [None, "bfloat16"])
def test_pad_value_makes_one_tensor_and_the_lengths(kind: str, cast: Any) -> None:
    source = RAGGED[kind]
    whole = batches(source, 5, float_dtype=cast)[0]
    for batch, rows in zip(
        batches(source, 2, shuffle=True, pad_value=-1, float_dtype=cast), orders(5, 2, shuffle=True), strict=True
    ):
        expected = torch.nn.utils.rnn.pad_sequence([whole[row] for row in rows], True, -1)
        assert_same(batch, (expected, torch.tensor([len(source[row]) for row in rows])))


def test_pad_value_gives_lengths_even_where_all_are_equal() -> None:
    lengths = torch.tensor([2, 2])
    for source in ([np.ones(2), np.ones(2)], [[1.0, 1.0], [1.0, 1.0]]):
        ((batch, found),) = batches(source, pad_value=0)
        assert_same(batch, torch.ones(2, 2, dtype=batch.dtype))
        assert_same(found, lengths)


def test_rows_that_differ_beyond_their_length_are_a_list_that_nothing_can_pad() -> None:
    source = [np.ones((2, 3)), np.zeros((4, 1)), np.ones((0, 5))]
    assert_same(batches(source), [[tensor_holding(each) for each in source]])
    with pytest.raises(
        nd.ShapeMismatchError, match=r"array 1 has another shape than array 0.*first axis only"
    ) as caught:
        nd.Loader(source, pad_value=0)
    assert caught.value.index == 1


def test_tensors_of_a_ragged_batch_are_memory_of_their_own() -> None:
    source = [np.arange(3.0), np.arange(2.0)]
    (batch,) = batches(source)
    for tensor, array in zip(batch, source, strict=True):
        assert_independent(tensor, array)


def test_list_of_texts_stays_a_list() -> None:
    texts = ["a", "bcd", "", "é", "x"]
    for batch, rows in zip(batches((texts, [1, 2, 3, 4, 5]), shuffle=True), orders(5, shuffle=True), strict=True):
        assert batch[0] == [texts[row] for row in rows]
    for array in (np.array(texts, object), np.array(texts, np.dtypes.StringDType())):
        assert batches(array) == [texts[:3], texts[3:]]
    assert batches([b"a", b"b"]) == [[b"a", b"b"]]


# ---- numbers ----


def test_lists_of_numbers_come_as_to_torch_has_them() -> None:
    for numbers in ([1, 2, 3], [1.5, 2, 3], [True, False, True], [[1, 2], [3, 4], [5, 6]], [np.float32(1)] * 3):
        assert_same(batches(numbers), [nd.to_torch(numbers)])
    assert_same(batches([0.1, 0.2], float_dtype="float64"), [torch.tensor([0.1, 0.2], dtype=torch.float64)])
    with pytest.raises(nd.LossyCastError, match=r"Loader: .*does not fit int64"):
        nd.Loader([2**70, 1])


# ---- samples ----


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass
class Sample:
    x: Any
    y: Any


def samples(n: int) -> list[dict[str, Any]]:
    return [
        {
            "pixels": np.full((2, 3), i, np.uint8),
            "y": i,
            "scale": i / 2,
            "text": f"{i}",
            "in": (torch.ones(2) * i, None),
        }
        for i in range(n)
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s,
        lambda s: tuple(s.values()),
        lambda s: Pair(s["pixels"], (s["y"], s["text"])),
        lambda s: [s["pixels"], s["scale"]],
    ],
    ids=["dict", "tuple", "named tuple", "list"],
)
def test_samples_come_as_collate_has_them(make: Callable[[Any], Any]) -> None:
    source = [make(sample) for sample in samples(7)]
    for batch, rows in zip(batches(source, shuffle=True), orders(7, shuffle=True), strict=True):
        expected = nd.collate([source[row] for row in rows])
        assert type(batch) is type(expected)
        assert_same(batch, expected)


def test_samples_may_be_dataclasses_with_ragged_lists() -> None:
    source = [Sample([1] * n, {"z": n}) for n in (2, 3, 1)]
    (batch,) = batches(source)
    assert type(batch) is Sample
    assert_same(
        [batch.x, batch.y], [[torch.ones(n, dtype=torch.int64) for n in (2, 3, 1)], {"z": torch.tensor([2, 3, 1])}]
    )


def test_pad_value_may_differ_from_leaf_to_leaf() -> None:
    source = [{"tokens": [5] * n, "labels": [1] * n, "rest": [2.0] * n} for n in (1, 2)]
    (batch,) = batches(source, pad_value={"tokens": 0, "['labels']": -100})
    lengths = torch.tensor([1, 2])
    assert_same(batch["tokens"], (torch.tensor([[5, 0], [5, 5]]), lengths))
    assert_same(batch["labels"], (torch.tensor([[1, -100], [1, 1]]), lengths))
    assert_same(batch["rest"], [torch.tensor([2.0]), torch.tensor([2.0, 2.0])])
    with pytest.raises(nd.InvalidOptionError, match=r"pad_value= names 'token', which the data has not"):
        nd.Loader(source, pad_value={"token": 0})


def test_float_dtype_casts_numbers_and_arrays_of_samples() -> None:
    (batch,) = batches(samples(3), float_dtype="float16")
    assert [batch[name].dtype for name in ("pixels", "y", "scale")] == [torch.uint8, torch.int64, torch.float16]
    assert batch["in"][0].dtype == torch.float16


# ---- what is refused ----

ODD: dict[str, tuple[list[Any], dict[str, Any], str, int | None]] = {
    "kinds": (["a", 1], {}, "sample 1 has another kind than sample 0; expected str, got int", 1),
    "an array among None": ([None, np.ones(2)], {}, r"expected NoneType, got f64\[2\]", 1),
    "axes": ([np.ones(2), np.ones(2), np.ones((2, 1))], {}, "array 2 has another shape than array 0", 2),
    "no axis": ([np.array(1.0), np.ones(2)], {}, "array 1 has another shape", 1),
    "keys": ([{"a": 1}, {"a": 2}, {"b": 1}], {}, "sample 2 has no 'a', which sample 0 has", 2),
    "lengths": ([(1, 2), (3,)], {}, "sample 1 has another length than sample 0", 1),
    "structures": ([Sample(1, 2), Sample(1, (2,))], {}, "sample 1 has another structure", 1),
    "inner kinds": ([{"a": [1]}, {"a": "b"}], {}, "sample 1 has another kind", 1),
    "lists": ([[1, 2], ["a"]], {}, "expected a list of numbers, got a list of other things", 1),
    "padded rows": ([np.ones((1, 2)), np.ones((1, 3))], {"pad_value": 0}, "array 1 has another shape", 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_sample_that_is_not_like_the_first_is_named(kind: str) -> None:
    source, options, message, index = ODD[kind]
    with pytest.raises(nd.ShapeMismatchError, match=rf"^Loader: .*{message}") as caught:
        nd.Loader(source, **options)
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("source", "message", "path"),
    [
        ([Decimal(1)], "cannot convert a decimal.Decimal", "[0]"),
        ({"x": [np.ones(1), np.ma.array([1.0])]}, "a tensor has no mask", "['x'][1]"),
        ([np.array(["a"])], "it holds no numbers", "[0]"),
        ([{"x": torch.ones(2).to_sparse()}], "its layout is sparse_coo", "['x'][0]"),
        ([np.zeros(2, [("a", "i4")])], "it holds no numbers", "[0]"),
    ],
)
def test_element_that_nothing_is_made_of_is_named(source: Any, message: str, path: str) -> None:
    with pytest.raises(nd.UnsupportedTypeError, match=rf"^Loader: .*{message}") as caught:
        nd.Loader(source)
    assert caught.value.path == path


def test_pad_value_that_is_none_of_the_dtype_is_refused() -> None:
    with pytest.raises(nd.LossyCastError, match=r"Loader: pad_value=0.5 is no value of int64"):
        nd.Loader([[1, 2], [3]], pad_value=0.5)
    with pytest.raises(nd.LossyCastError, match=r"Loader: pad_value=300 is no value of uint8"):
        nd.Loader([np.ones(1, np.uint8), np.ones(2, np.uint8)], pad_value=300)


def test_pad_value_where_nothing_is_ragged_is_refused() -> None:
    with pytest.raises(nd.InvalidOptionError, match=r"nothing to fill up.*got data\['x'\] f64\[3\]\(numpy\)"):
        nd.Loader({"x": np.ones(3)}, pad_value=0)


def test_list_inside_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(nd.NdtorchError, match="Loader: the data contains itself"):
        nd.Loader([loop, loop])
