"""`stack`: many arrays into one new tensor, held against `np.stack` of what `astype` makes of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from comparison import array_holding, assert_independent, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    DTYPES,
    NATIVE,
    SHAREABLE,
    SMALL_FLOATS,
    UNSHAREABLE,
    any_values,
    arrays,
    can_be,
    filled,
    pitched,
    read_only,
)

import ndtorch as nd

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **SHAREABLE,
    **UNSHAREABLE,
    "all reversed": lambda a: np.flip(np.array(np.flip(a))),
    "read-only": lambda a: read_only(a.copy()),
    "one row again and again": lambda a: np.broadcast_to(a[:1], a.shape),
    "transposed in the other byte order": lambda a: a.T.astype(a.dtype.newbyteorder("S")).T,
}
KINDS = "buifc"  # the ladder of same_kind, where unsigned integers stand below signed ones
RANKS = {name: KINDS.index(dtype.kind) for name, (dtype, _) in NATIVE.items()}
RANKS |= dict.fromkeys(SMALL_FLOATS, RANKS["float32"])


def of(name: str) -> np.dtype:
    return DTYPES[name][0]


def cast(array: np.ndarray, target: Any) -> np.ndarray:
    """What NumPy makes of an array; float32 lies between two formats of 8 bits, which have no cast of their own."""
    target = np.dtype(target)
    native = np.asarray(array, array.dtype.newbyteorder("="))
    with np.errstate(all="ignore"):
        if "float8" in native.dtype.name and "float8" in target.name:
            native = native.astype(np.float32)
        return native.astype(target)


def stacked(sources: list[np.ndarray], dtype: Any = None, dim: int = 0) -> torch.Tensor:
    """What `np.stack` makes of arrays, each cast to ``dtype``; left away, to that of the first."""
    target = sources[0].dtype.newbyteorder("=") if dtype is None else dtype
    return tensor_holding(np.stack([cast(np.asarray(x), target) for x in sources], dim))


def some(dtype: Any, shape: tuple[int, ...] = (3, 4), count: int = 3) -> list[np.ndarray]:
    return [any_values(np.dtype(dtype), shape, seed) for seed in range(count)]


def padded(sources: list[np.ndarray], pad: Any, dtype: Any = None, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What NumPy makes of arrays that are made as long as the longest first."""
    longest = max(map(len, sources))
    widths = [[(0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)] for x in sources]
    whole = [np.pad(cast(x, dtype or x.dtype), w, constant_values=pad) for x, w in zip(sources, widths, strict=True)]
    return stacked(whole, dtype, dim), torch.tensor([len(x) for x in sources])


def contents(source: Any) -> bytes:
    return array_holding(source).tobytes() if isinstance(source, torch.Tensor) else np.asarray(source).tobytes()


def smallest(names: tuple[str, ...]) -> str:
    """The smallest dtype that NumPy lets all of ``names`` become safely; of two as small the integer."""
    safe = [t for t in NATIVE if all(np.can_cast(of(name), of(t), "safe") for name in names)]
    return min(safe, key=lambda t: (of(t).itemsize, RANKS[t]))


# ---- every dtype and layout ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_dtype_and_layout_are_stacked_along_any_axis(dtype: str, layout: str) -> None:
    if not can_be(layout, of(dtype)):
        layout = "row-major"
    plain = some(of(dtype))
    laid_out = [LAYOUTS[layout](x) for x in plain]
    mixed = [laid_out[0], plain[1], tensor_holding(plain[2]), tensor_holding(plain[0].T).T]
    before = [contents(x) for x in (*laid_out, *mixed)]
    for dim in range(-3, 3):
        assert_same(nd.stack(laid_out, dim=dim), stacked(laid_out, dim=dim))
        assert_same(nd.stack(mixed, dim=dim), stacked([laid_out[0], plain[1], plain[2], plain[0]], dim=dim))
    assert [contents(x) for x in (*laid_out, *mixed)] == before, "a source was written"
    result = nd.stack(laid_out)
    for source in laid_out:
        assert_independent(result, source)


SHAPES = [(), (0,), (1,), (2, 0, 3), (17,), (1, 1), (65, 3), (2, 3, 5), (9, 1, 8), (2, 2, 2, 2, 2), (129,)]


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float64", "complex128"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_and_number_of_arrays_is_stacked(shape: tuple[int, ...], dtype: str) -> None:
    for count in (1, 2, 7, 33):
        sources = some(of(dtype), shape, count)
        for dim in {0, len(shape), -1, -len(shape) - 1}:
            result = nd.stack(sources, dim=dim)
            assert_same(result, stacked(sources, dim=dim))
            assert result.untyped_storage().nbytes() == sources[0].nbytes * count


def test_sources_are_any_iterable_of_anything_that_is_like_an_array() -> None:
    rows = filled("float32", (3, 4))
    expected = tensor_holding(rows)
    for sources in (
        rows,
        rows[::-1][::-1],
        expected,
        list(rows),
        tuple(expected),
        iter(rows),
        [*rows[:2], expected[2]],
    ):
        assert_same(nd.stack(sources), expected)
    assert_same(nd.stack(row * 2 for row in rows), expected * 2)
    assert_same(nd.stack({"a": rows[0], "b": rows[1]}.values()), expected[:2])
    assert_same(nd.stack(rows, dim=1), expected.T.contiguous())
    assert_independent(nd.stack(rows), rows)
    assert_independent(nd.stack(expected), rows)
    assert_same(nd.stack([rows.view(type("Picture", (np.ndarray,), {}))]), expected[None])


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([1, 2, -3], torch.tensor([1, 2, -3])),
        (range(4), torch.arange(4)),
        ([True, False], torch.tensor([True, False])),
        ([1.5, 2.5], torch.tensor([1.5, 2.5])),
        ([np.float64(1.5), np.array(2.5)], torch.tensor([1.5, 2.5], dtype=torch.float64)),
        ([np.int8(1), np.uint8(200)], torch.tensor([1, 200], dtype=torch.int16)),
        ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], torch.arange(1, 9).reshape(2, 2, 2)),
        ([(1, 2), np.array([3, 4])], torch.tensor([[1, 2], [3, 4]])),
        ([np.array([1, 2], object), np.array([3, 4])], torch.tensor([[1, 2], [3, 4]])),
    ],
    ids=repr,
)
def test_numbers_and_lists_of_numbers_are_stacked(sources: Any, expected: torch.Tensor) -> None:
    assert_same(nd.stack(sources), expected)


@pytest.mark.parametrize("layout", ["row-major", "other byte order", "reversed rows", "unaligned"])
@pytest.mark.parametrize("dtype", ["M8[D]", "M8[ns]", "m8[s]", "m8[25us]"])
def test_time_is_stacked_as_its_integers(dtype: str, layout: str) -> None:
    whole = [filled("int64"), -filled("int64"), np.full((3, 4), -(2**63))]
    assert_same(nd.stack([LAYOUTS[layout](x.view(dtype)) for x in whole], dim=1), stacked(whole, dim=1))


def test_tensors_are_read_as_their_values_say() -> None:
    base = torch.tensor([[1 + 2j, 3 - 4j], [5j, 6]])
    lazy = [base.conj(), base.T, base.conj().T, base[:1].expand(2, 2), base.clone().requires_grad_()]
    assert_same(nd.stack(lazy, dim=2), torch.stack([x.detach().resolve_conj() for x in lazy], 2))
    negative = [base.conj().imag, base.real, base[:, :1].expand(2, 2).imag]
    assert_same(nd.stack(negative), torch.stack([x.resolve_neg() for x in negative]))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_format_that_numpy_lacks_widens_without_loss() -> None:
    half = torch.tensor([[1 + 2j, -3j], [0, 0.5]]).to(torch.complex32)
    whole = half.to(torch.complex64)
    assert_same(nd.stack([half, half.T, half.conj()], dim=1), torch.stack([whole, whole.T, whole.conj()], 1))


ANYHOW: list[Callable[[np.ndarray], Any]] = [
    np.array,
    lambda a: tensor_holding(a.T).permute(tuple(reversed(range(a.ndim)))),
    lambda a: np.flip(np.array(np.flip(a))),
    lambda a: a.astype(a.dtype.newbyteorder("S")),
    lambda a: np.array(a.T).T,
    lambda a: pitched(a, a.itemsize + 1, 1),
    lambda a: np.repeat(a, 2, -1)[..., ::2] if a.ndim else a,
]
"""Layouts for arrays of any shape."""


@st.composite
def twins(draw: st.DrawFn) -> tuple[list[Any], list[np.ndarray], str | None]:
    """Sources of one shape, each laid out in its own way, their plain twins, and what they are to become."""
    first = draw(arrays())
    target = draw(st.sampled_from([None, *DTYPES]))
    name, shape = first.dtype.name, first.shape
    names = [n for n in DTYPES if target is not None and RANKS[n] <= RANKS[target]]
    if name not in names:
        target, names = (None, [name] if name in SMALL_FLOATS else list(NATIVE))
    sources: list[Any] = [first]
    plain = [np.array(first, first.dtype.newbyteorder("="))]
    for seed in range(draw(st.integers(0, 4))):
        whole = any_values(of(draw(st.sampled_from(names))), shape, seed)
        plain.append(whole)
        sources.append(draw(st.sampled_from(ANYHOW))(whole))
    order = draw(st.permutations(range(len(sources))))
    return [sources[i] for i in order], [plain[i] for i in order], target


@settings(max_examples=300)
@given(twins(), st.data())
def test_any_arrays_are_stacked_as_numpy_would(
    drawn: tuple[list[Any], list[np.ndarray], str], data: st.DataObject
) -> None:
    sources, plain, target = drawn
    ndim = plain[0].ndim
    dim = data.draw(st.integers(-ndim - 1, ndim))
    names = tuple(x.dtype.name for x in plain)
    expected = stacked(plain, of(target or (names[0] if names[0] in SMALL_FLOATS else smallest(names))), dim)
    before = [contents(x) for x in sources]
    assert_same(nd.stack(sources, dim=dim, dtype=target), expected)
    out = torch.empty_like(expected)
    assert nd.stack(sources, dim=dim, dtype=target, out=out) is out
    assert_same(out, expected)
    assert [contents(x) for x in sources] == before, "a source was written"


# ---- dtypes ----

PROMOTIONS = {
    ("uint8", "int8"): "int16",
    ("bool", "uint8"): "uint8",
    ("int16", "float16"): "float32",
    ("int8", "float16"): "float16",
    ("int64", "float32"): "float64",
    ("int64", "uint64"): "float64",
    ("float16", "bfloat16"): "float32",
    ("bfloat16", "float64"): "float64",
    ("bfloat16", "float16", "float32"): "float32",
    ("float64", "complex64"): "complex128",
    ("uint16", "int16", "float32"): "float32",
    ("bool", "uint32", "int8"): "int64",
}


@pytest.mark.parametrize("names", PROMOTIONS, ids="-".join)
def test_arrays_of_several_dtypes_become_the_smallest_that_holds_all(names: tuple[str, ...]) -> None:
    for order in itertools.permutations(names):
        sources = [filled(of(name)) for name in order]
        assert_same(nd.stack(sources), stacked(sources, of(PROMOTIONS[names])))
        assert_same(nd.stack([tensor_holding(sources[0]), *sources[1:]]), stacked(sources, of(PROMOTIONS[names])))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_promotion_is_the_same_in_every_order(count: int) -> None:
    for names in itertools.combinations_with_replacement(NATIVE, count):
        for order in set(itertools.permutations(names)):
            sources = [filled(of(name), 2) for name in order]
            assert_same(nd.stack(sources), stacked(sources, of(smallest(names))))


@pytest.mark.parametrize("small", SMALL_FLOATS)
def test_promotion_of_small_floats_is_safe_and_the_same_in_every_order(small: str) -> None:
    assert_same(nd.stack(some(of(small))), stacked(some(of(small)), of(small)))
    for names in [(small, a, b) for a, b in itertools.combinations_with_replacement(DTYPES, 2)][::3]:
        (dtype,) = {nd.stack([filled(of(name)) for name in order]).dtype for order in itertools.permutations(names)}
        target = str(dtype).removeprefix("torch.")
        assert RANKS[target] >= max(RANKS[name] for name in names)
        assert all(np.can_cast(of(name), of(target), "safe") for name in names), f"{names} became {target}"


@pytest.mark.parametrize("target", DTYPES)
def test_dtype_casts_every_array_by_the_rules_of_same_kind(target: str) -> None:
    for source in DTYPES:
        sources = some(of(source))
        if RANKS[source] <= RANKS[target]:
            for dtype in (target, *DTYPES[target]):
                assert_same(nd.stack(sources, dtype=dtype, dim=1), stacked(sources, of(target), 1))
        else:
            with pytest.raises(nd.LossyCastError, match=f"{source} to {target}"):
                nd.stack([filled(of(target)), *sources], dtype=target)


# ---- sizes ----


@pytest.fixture(params=[1, 4], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("source", "target"), [("uint8", None), ("uint8", "float32"), ("float64", "float32")])
def test_arrays_large_enough_for_threads_are_stacked_whole(source: str, target: str | None) -> None:
    whole = filled(of(source), (701, 1003))
    made = [LAYOUTS[name](whole) for name in ("row-major", "all reversed", "transposed", "odd pitch", "reversed items")]
    for dim in (0, 1, 2):
        assert_same(nd.stack(made, dim=dim, dtype=target), stacked(made, target, dim))
    tall = [whole.T, filled("float32", (1003, 701))]
    assert_same(nd.stack(tall, dim=-1), stacked(tall, smallest((source, "float32")), -1))
    ragged = [x[: 701 - 200 * i] for i, x in enumerate(made[:3])]
    result, lengths = nd.stack(ragged, pad_value=1, dim=1)
    assert_same((result, lengths), padded(ragged, 1, dim=1))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dim", [0, -1])
def test_many_tiny_arrays_are_stacked(dim: int) -> None:
    rows = filled("float32", (20_000, 3))
    kinds = [rows.astype(dtype) for dtype in ("f4", "i2", ">f4", "u1")]
    assert_same(nd.stack(list(rows), dim=dim), tensor_holding(np.stack(rows, dim)))
    assert_same(nd.stack([kinds[i % 4][i] for i in range(20_000)], dim=dim), tensor_holding(np.stack(rows, dim)))
    assert_same(nd.stack(range(20_000)), torch.arange(20_000))
