"""`stack` with `dim=`, `pad_value=`, `out=` and `device=`, and what it refuses before a byte is written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding
from strategies import DTYPES, filled
from test_stack import LAYOUTS, of, padded, some, stacked

import ndtorch as nd

# ---- pad_value ----


@pytest.mark.parametrize("layout", ["row-major", "column-major", "reversed rows", "every other item", "odd pitch"])
@pytest.mark.parametrize("dtype", ["bool", "int16", "uint8", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("lengths", [(3, 1, 4), (2, 2), (0, 3), (0, 0), (5,), (1, 0, 2, 9)], ids=str)
def test_arrays_of_several_lengths_are_filled_up(lengths: tuple[int, ...], dtype: str, layout: str) -> None:
    whole = LAYOUTS[layout](filled(of(dtype), (9, 4)))
    for sources in ([whole[:n] for n in lengths], [whole[:n, 0] for n in lengths], [whole[:n, None] for n in lengths]):
        for dim in range(-sources[0].ndim - 1, sources[0].ndim + 1):
            assert_same(nd.stack(sources, pad_value=1, dim=dim), padded(sources, 1, dim=dim))
        expected = padded(sources, 0, "complex128")
        out = torch.full_like(expected[0], 7)
        result = nd.stack(map(tensor_holding, sources), pad_value=0, dtype="complex128", out=out)
        assert_same(result, expected)
        assert result[0] is out


INFINITE, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("dtype", "fits", "fits_not"),
    [
        ("bool", [0, 1, True, False, 1.0], [2, -1, 0.5, NAN]),
        ("uint8", [0, 255, True, 2.0, np.int64(7)], [300, 256, -1, 0.5, NAN, 1j, 10**30]),
        ("int8", [-128, 127], [128, -129, INFINITE]),
        ("int64", [-100, 2**63 - 1, -(2**63), np.float32(3)], [2**63, 0.5, NAN, -INFINITE, 1j]),
        ("uint64", [2**64 - 1], [2**64, -1]),
        ("float16", [0.5, NAN, -INFINITE, True], [1j]),
        ("float32", [0.5, NAN, INFINITE, -0.0, np.float64(0.25)], [1j]),
        ("complex64", [0.5, 1j, NAN], []),
    ],
)
def test_pad_value_has_to_fit_the_dtype(dtype: str, fits: list[Any], fits_not: list[Any]) -> None:
    sources = [filled(of(dtype), 3), filled(of(dtype), 1)]
    for pad in fits:
        assert_same(nd.stack(sources, pad_value=pad), padded(sources, pad))
    for pad in fits_not:
        with pytest.raises(nd.LossyCastError):
            nd.stack(sources, pad_value=pad)
    assert nd.stack([np.arange(3), np.arange(1)], dtype="float32", pad_value=NAN)[0].isnan().sum() == 2


# ---- out ----

OUTS: dict[str, Callable[[tuple[int, ...]], tuple[torch.Size, Callable[[torch.Tensor], torch.Tensor]]]] = {
    "row-major": lambda s: (s, lambda base: base),
    "column-major": lambda s: (s[::-1], lambda base: base.permute(*reversed(range(len(s))))),
    "every other item": lambda s: ((*s[:-1], s[-1] * 2), lambda base: base[..., 1::2]),
    "part of a larger tensor": lambda s: (tuple(n + 2 for n in s), lambda base: base[(slice(1, -1),) * len(s)]),
    "every third row, axes turned": lambda s: ((s[-1] * 3, *s[:-1]), lambda base: base[::3].movedim(0, -1)),
}


def out_of(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "row-major") -> tuple[torch.Tensor, torch.Tensor]:
    """Make the bytes that hold a tensor, each of them 1, and the tensor."""
    whole, view = OUTS[layout](shape)
    base = torch.empty(whole, dtype=dtype)
    base.view(torch.uint8).fill_(1)
    return base.view(torch.uint8), view(base)


@pytest.mark.parametrize("layout", OUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_written_wherever_its_items_lie_and_nothing_else_is(dtype: str, layout: str) -> None:
    for dim, source in itertools.product(range(3), ("row-major", "column-major", "reversed rows")):
        sources = [LAYOUTS[source](x) for x in some(of(dtype))]
        expected = stacked(sources, dim=dim)
        raw, out = out_of(tuple(expected.shape), expected.dtype, layout)
        assert nd.stack(sources, dim=dim, out=out) is out
        assert_same(out, expected)
        out.copy_(out_of(tuple(out.shape), out.dtype)[1])
        assert bool((raw == 1).all()), "bytes between the items were written"


def test_out_may_lie_between_the_items_of_a_source_but_not_on_them() -> None:
    base = np.arange(24.0).reshape(4, 6)
    out = torch.from_numpy(base)[:2, 1::2]
    expected = tensor_holding(base[:2, ::2])
    assert_same(nd.stack(list(base[:2, ::2]), out=out), expected)
    for sources in ([base[0, 3:], base[2, :3]], [np.ones(3), base[1, ::-1][:3]], [out[0], out[1]], out):
        before = base.tobytes()
        with pytest.raises(nd.InvalidOptionError, match="out"):
            nd.stack(sources, out=out)
        assert base.tobytes() == before


def test_out_that_is_lazily_conjugated_holds_the_values_or_is_refused() -> None:
    out = torch.zeros(1, 2, dtype=torch.complex64).conj()
    try:
        nd.stack([np.array([1j, 2 - 1j], "c8")], out=out)
    except nd.InvalidOptionError:
        assert not out.any()
    else:
        assert_same(out, torch.tensor([[1j, 2 - 1j]]))


@pytest.mark.parametrize("left", [0, 8])
def test_out_without_its_memory_is_refused(left: int) -> None:
    out = torch.zeros(2, 2, dtype=torch.float64)
    out.untyped_storage().resize_(left)
    with pytest.raises(nd.InvalidOptionError, match="out has a storage smaller than itself"):
        nd.stack([A, A], out=out)


def test_hint_for_the_last_smaller_batch_is_its_part_of_the_buffer() -> None:
    buffer = torch.zeros(4, 2)
    with pytest.raises(nd.ShapeMismatchError, match=re.escape("out=out[:2]")):
        nd.stack([A, A], out=buffer, dtype="float32")
    with pytest.raises(nd.InvalidOptionError, match=re.escape("out=torch.empty((2, 2), dtype=torch.float64)")):
        nd.stack([A, A], out=torch.zeros(2, 2, dtype=torch.int64))


# ---- device ----


def test_result_lies_on_the_device_that_was_asked_for() -> None:
    assert nd.stack([A, A], device="cpu").device == torch.device("cpu")
    result, lengths = nd.stack([A, A[:1]], device="meta", dtype="float32", pad_value=0)
    assert (result.device.type, tuple(result.shape), result.dtype) == ("meta", (2, 2), torch.float32)
    assert_same(lengths, torch.tensor([2, 1]))


@pytest.mark.cuda
def test_stack_is_made_on_the_gpu() -> None:
    sources = [LAYOUTS["reversed rows"](x) for x in some("float64")]
    for options in ({"device": "cuda"}, {"out": torch.empty(3, 4, 3, dtype=torch.float64, device="cuda").mT}):
        result = nd.stack(sources, **options)
        assert result.is_cuda
        assert_same(result.cpu(), stacked(sources))
    result, lengths = nd.stack([A, A[:1]], pad_value=5, device="cuda")
    assert_same((result.cpu(), lengths), padded([A, A[:1]], 5))


# ---- refusals ----

A = np.arange(2.0)
ROW = {"index": 2, "expected": (2,), "got": (3,)}
HINT = {"hint": "pad_value"}

REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], dict[str, Any]]] = {
    "no arrays": ([], {}, nd.ShapeMismatchError, {}),
    "no arrays to fill up": (iter([]), {"pad_value": 0}, nd.ShapeMismatchError, {}),
    "no rows": (np.empty((0, 3)), {}, nd.ShapeMismatchError, {}),
    "longer": ([A, A, np.ones(3)], {}, nd.ShapeMismatchError, {**ROW, **HINT}),
    "shorter": ([A, tensor_holding(A[:1]), np.ones(3)], {}, nd.ShapeMismatchError, {"index": 1, "got": (1,), **HINT}),
    "of more dimensions": ([A, A, A[None]], {}, nd.ShapeMismatchError, {**ROW, "got": (1, 2)}),
    "a number among arrays": ([A, 1.5], {}, nd.ShapeMismatchError, {"index": 1, "expected": (2,), "got": ()}),
    "lists of two lengths": ([[1, 2], [3]], {}, nd.ShapeMismatchError, {"index": 1, "expected": (2,), "got": (1,)}),
    "empty in another way": ([A[:0], A[:0, None]], {}, nd.ShapeMismatchError, {"index": 1, "got": (0, 1)}),
    "of other width": (
        [np.ones((3, 2)), np.ones((1, 2)), np.ones((3, 1))],
        {"pad_value": 0},
        nd.ShapeMismatchError,
        {"index": 2, "expected": (3, 2), "got": (3, 1)},
    ),
    "of more dimensions to fill up": (
        [A, A[:1], A[None]],
        {"pad_value": 0},
        nd.ShapeMismatchError,
        {"index": 2, "expected": (2,), "got": (1, 2)},
    ),
    "numbers to fill up": ([1.5, 2.5], {"pad_value": 0}, nd.ShapeMismatchError, {}),
    "no iterable": (3, {}, nd.NdtorchError, {}),
    "no array at all": (None, {}, nd.NdtorchError, {}),
    "array without dimensions": (np.array(1.5), {}, nd.NdtorchError, {}),
    "dim too large": ([A, A, A], {"dim": 2}, nd.InvalidOptionError, {}),
    "dim too small": ([A, A, A], {"dim": -3}, nd.InvalidOptionError, {}),
    "dim of numbers": ([1, 2], {"dim": 1}, nd.InvalidOptionError, {}),
    "dim between two": ([A, A, A], {"dim": 0.5}, nd.InvalidOptionError, {}),
    "dim in words": ([A, A, A], {"dim": "first"}, nd.InvalidOptionError, {}),
    "dtype unknown": ([A, A, A], {"dtype": "real"}, nd.InvalidOptionError, {}),
    "dtype that torch has not": ([A, A, A], {"dtype": "M8[s]"}, nd.UnsupportedDtypeError, {}),
    "loss": ([A.astype("i8"), A], {"dtype": "int64"}, nd.LossyCastError, {}),
    "loss of sign": ([A.astype("u1"), A.astype("i1")], {"dtype": "uint8"}, nd.LossyCastError, {}),
    "device unknown": ([A, A, A], {"device": "abacus"}, nd.InvalidOptionError, {}),
    "pad_value in words": ([A, A, A], {"pad_value": "zero"}, nd.NdtorchError, {}),
    "pad_value that does not fit": ([A > 0, A[:1] > 0], {"pad_value": 2}, nd.LossyCastError, {}),
    "time of two units": ([A.astype("M8[s]"), A.astype("M8[D]")], {}, nd.NdtorchError, {}),
    "time and numbers": ([A, A.astype("m8[s]")], {}, nd.NdtorchError, {}),
    "time to float": ([A.astype("M8[s]")] * 3, {"dtype": "float64"}, nd.UnsupportedDtypeError, {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stacked_is_refused_before_out_is_written(case: str) -> None:
    sources, options, error, facts = REFUSED[case]
    outs = [out_of((3, 2), torch.float64), out_of((2, 2), torch.int64), out_of((2, 2), torch.float64)]
    for raw, out in [(None, None), *outs]:
        with pytest.raises(error if out is None else nd.NdtorchError) as caught:
            nd.stack(sources, out=out, **options)
        if out is None:
            found = {name: getattr(caught.value, name) for name in facts}
            assert {k: v for k, v in facts.items() if k != "hint"}.items() <= found.items()
            assert facts.get("hint", "") in (caught.value.hint or "")
            assert str(caught.value).startswith("stack: ")
        else:
            assert bool((raw == 1).all()), "out was written"


STRANGE: dict[str, Any] = {
    "text": np.array(["a", "b"]),
    "bytes": np.array([b"a", b"b"]),
    "fields": np.zeros(2, [("x", "f8")]),
    "masked": np.ma.array([1.0, 2.0]),
    "objects": np.array([1.5, object()]),
    "objects of text": np.array([1, "a"], object),
    "long double": np.ones(2, np.longdouble),
    "four bits": np.ones(2, ml_dtypes.int4),
    "string": "ab",
    "nothing": None,
    "set": {1, 2},
    "object": object(),
}


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("kind", STRANGE)
def test_array_that_no_tensor_can_hold_is_refused_and_named(kind: str, at: int) -> None:
    if kind == "long double" and np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is double here")
    sources = [A] * 5
    sources[at] = STRANGE[kind]
    for options in ({}, {"pad_value": 0}):
        raw, out = out_of((5, 2), torch.float64)
        with pytest.raises(nd.UnsupportedTypeError) as caught:
            nd.stack(sources, out=out, **options)
        assert caught.value.path == f"[{at}]"
        assert caught.value.__notes__ == [f"at source[{at}]"]
        assert bool((raw == 1).all()), "out was written"


def windows(shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    return torch.ones(16, dtype=torch.float64).as_strided(shape, strides)


GOOD = torch.ones(3, 2, dtype=torch.float64)
BAD_OUTS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "shape": (GOOD.T, {}, nd.ShapeMismatchError, "out"),
    "one dimension too many": (GOOD[None], {}, nd.ShapeMismatchError, "out"),
    "shape of another dim": (GOOD, {"dim": 1}, nd.ShapeMismatchError, "out"),
    "shape of longer arrays": (GOOD[:, :1], {"pad_value": 0}, nd.ShapeMismatchError, "out"),
    "dtype": (GOOD.float(), {}, nd.InvalidOptionError, "float32.*float64|float64.*float32|f32.*f64|f64.*f32"),
    "dtype beside dtype=": (GOOD, {"dtype": "float32"}, nd.InvalidOptionError, "out"),
    "dtype of the same size": (GOOD.long(), {}, nd.InvalidOptionError, "int64|i64"),
    "device": (GOOD, {"device": "meta"}, nd.InvalidOptionError, "device"),
    "device of out": (GOOD.to("meta"), {"device": "cpu"}, nd.InvalidOptionError, "device"),
    "expanded": (GOOD[:1].expand(3, 2), {}, nd.InvalidOptionError, "out"),
    "overlapping itself": (windows((3, 2), (1, 1)), {}, nd.InvalidOptionError, "out"),
    "overlapping itself here and there": (windows((3, 2), (3, 6)), {}, nd.InvalidOptionError, "out"),
    "requiring grad": (GOOD.clone().requires_grad_(), {}, nd.InvalidOptionError, "grad"),
    "with a history": (GOOD.clone().requires_grad_() * 2, {}, nd.InvalidOptionError, "grad"),
    "sparse": (GOOD.to_sparse(), {}, nd.InvalidOptionError, "sparse"),
    "array": (GOOD.numpy(), {}, nd.InvalidOptionError, "out"),
    "list": ([[1.0, 1.0]] * 3, {}, nd.InvalidOptionError, "out"),
    "True": (True, {}, nd.InvalidOptionError, "out"),
}


@pytest.mark.parametrize("case", BAD_OUTS)
def test_out_that_cannot_be_written_is_refused_and_left_alone(case: str) -> None:
    out, options, error, words = BAD_OUTS[case]
    with pytest.raises(error, match=words) as caught:
        nd.stack([A, A, A], out=out, **options)
    if error is nd.ShapeMismatchError:
        assert (caught.value.expected, caught.value.got) == ((2, 3) if "dim" in options else (3, 2), tuple(out.shape))
    if isinstance(out, torch.Tensor) and out.device.type == "cpu" and "history" not in case:
        assert bool((out.detach().to_dense() == 1).all()), "out was written"


def test_out_whose_items_do_not_overlap_is_written_whatever_its_strides() -> None:
    for out in (windows((3, 2), (1, 4)), windows((3, 2), (2, 3)), windows((3, 2), (3, 1)), windows((3, 2), (2, 1))):
        assert_same(nd.stack([A, A + 2, A + 4], out=out), torch.arange(6.0, dtype=torch.float64).reshape(3, 2))
    one = torch.ones(1, dtype=torch.float64).as_strided((1, 1), (0, 0))
    assert nd.stack([A[1:]], out=one) is one
    empty = torch.empty(0, 3, dtype=torch.float64)
    assert nd.stack([A[:0]] * 3, dim=1, out=empty) is empty


def test_generator_that_fails_leaves_out_alone() -> None:
    raw, out = out_of((3, 2), torch.float64)
    with pytest.raises(ZeroDivisionError):
        nd.stack((A * (6 // (2 - i)) for i in range(3)), out=out)
    assert bool((raw == 1).all()), "out was written"
