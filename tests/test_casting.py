"""`casting=`: NumPy's words against `np.can_cast`, and `exact` against arithmetic without rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import array_holding, assert_same, tensor_holding
from strategies import DTYPES, NATIVE, SHAREABLE, SMALL_FLOATS, UNSHAREABLE, any_values, can_be, filled

import ndtorch as nd

WORDS = ["no", "equiv", "safe", "same_kind", "unsafe"]

ROUTES: dict[str, tuple[Callable[[np.ndarray], Any], Callable[..., Any]]] = {
    "array to tensor": (np.asarray, nd.to_torch),
    "tensor to array": (tensor_holding, nd.to_numpy),
    "array to array": (np.asarray, nd.to_numpy),
    "tensor to tensor": (tensor_holding, nd.to_torch),
}

# ---- NumPy's words ----


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("source", NATIVE)
def test_word_allows_the_casts_that_numpy_allows(source: str, word: str, route: str) -> None:
    make, convert = ROUTES[route]
    array = filled(NATIVE[source][0])
    for target, (numpy, _) in NATIVE.items():
        if np.can_cast(array.dtype, numpy, word):
            result = convert(make(array), dtype=target, casting=word)
            real = array.real if array.dtype.kind == "c" and numpy.kind != "c" else array
            assert_same(np.asarray(result), real.astype(numpy))
        else:
            with pytest.raises(nd.LossyCastError, match=f"{source} to {target} is not a {word} cast") as caught:
                convert(make(array), dtype=target, casting=word)
            assert caught.value.dtype == target


@pytest.mark.parametrize("small", SMALL_FLOATS)
def test_small_floats_are_floats_among_their_kind(small: str) -> None:
    array = filled(SMALL_FLOATS[small][0])
    for name, (numpy, _) in NATIVE.items():
        up, down = numpy.kind in "fc", numpy.kind in "biuf"
        for source, target, allowed in ((array, name, up), (array.astype(numpy), small, down)):
            if allowed:
                assert_same(nd.to_torch(source, dtype=target), tensor_holding(source.astype(DTYPES[target][0])))
            else:
                with pytest.raises(nd.LossyCastError):
                    nd.to_torch(source, dtype=target)
        if np.can_cast(array.dtype, numpy, "safe"):
            assert nd.to_torch(array, dtype=name, casting="safe").dtype == NATIVE[name][1]
        else:
            with pytest.raises(nd.LossyCastError):
                nd.to_torch(array, dtype=name, casting="safe")


def test_the_cast_that_exact_names_is_one_that_is_allowed() -> None:
    for source, dtype, casting in (("f8", "f4", "same_kind"), ("f8", "i8", "unsafe"), ("i8", "u1", "unsafe")):
        array = np.array([1 / 3, 300.0]).astype(source)
        with pytest.raises(nd.LossyCastError, match=f"Hint: casting='{casting}'.* accepts the loss") as caught:
            nd.to_torch(array, dtype=np.dtype(dtype).name, casting="exact")
        assert caught.value.dtype == np.dtype(dtype).name
        nd.to_torch(array, dtype=np.dtype(dtype).name, casting=casting)


def test_byte_order_is_no_cast() -> None:
    swapped = filled(np.dtype("f4").newbyteorder("S"))
    assert_same(nd.to_torch(swapped, dtype="float32", casting="no"), tensor_holding(swapped))
    assert nd.to_numpy(torch.ones(2), dtype=swapped.dtype, casting="equiv").dtype == swapped.dtype


def test_default_lets_floats_shrink_but_not_become_integers() -> None:
    array = np.array([1.1, 1e300])
    assert nd.to_torch(array, dtype="float32").tolist() == [np.float32(1.1), math.inf]
    with pytest.raises(nd.LossyCastError, match="casting='unsafe' insists"):
        nd.to_torch(array, dtype="int32")
    with pytest.raises(nd.LossyCastError):
        nd.to_torch([0.5], dtype="int32")


# ---- exact: the oracle ----

# name: bits of the significand, exponent of the smallest normal number, largest finite number, has infinity
FLOATS = {
    "float8_e4m3fn": (4, -6, Fraction(448), False),
    "float8_e4m3fnuz": (4, -7, Fraction(240), False),
    "float8_e5m2": (3, -14, Fraction(57344), True),
    "float8_e5m2fnuz": (3, -15, Fraction(57344), False),
    "float8_e8m0fnu": (1, -127, Fraction(2) ** 127, False),
    "bfloat16": (8, -126, (2 - Fraction(2) ** -7) * 2**127, True),
    "float16": (11, -14, Fraction(65504), True),
    "float32": (24, -126, (2 - Fraction(2) ** -23) * 2**127, True),
    "float64": (53, -1022, (2 - Fraction(2) ** -52) * 2**1023, True),
}
PARTS = {"complex64": "float32", "complex128": "float64"}


def number(value: Any) -> tuple[Any, Any]:
    """An element as its exact real and imaginary part: Fractions, infinities or ``nan``."""
    return (part(value.real), part(value.imag)) if isinstance(value, np.complexfloating) else (part(value), Fraction(0))


def part(value: Any) -> Any:
    if isinstance(value, np.integer | np.bool_):
        return Fraction(int(value))
    value = value if isinstance(value, np.longdouble) else float(value)
    if np.isfinite(value):
        return Fraction(*value.as_integer_ratio())
    return "nan" if np.isnan(value) else float(value)


def fits(number: tuple[Any, Any], target: str) -> bool:
    """Whether a dtype has exactly this number."""
    if target in PARTS:
        return all(part_fits(part, PARTS[target]) for part in number)
    return number[1] == 0 and part_fits(number[0], target)


def part_fits(value: Any, target: str) -> bool:
    if target == "bool":
        return value in (0, 1)
    if target not in FLOATS:
        limits = np.iinfo(target)
        return isinstance(value, Fraction) and value.denominator == 1 and limits.min <= value <= limits.max
    bits, smallest, largest, has_infinity = FLOATS[target]
    if not isinstance(value, Fraction):
        return value == "nan" or has_infinity
    if target == "float8_e8m0fnu" and value <= 0:
        return False  # it has neither a sign nor a zero
    last = Fraction(2) ** (max(_exponent(value), smallest) - bits + 1)
    return abs(value) <= largest and (value / last).denominator == 1


def _exponent(value: Fraction) -> int:
    if value == 0:
        return 0
    guess = abs(value.numerator).bit_length() - value.denominator.bit_length()
    return guess if Fraction(2) ** guess <= abs(value) else guess - 1


EDGES = sorted(
    {sign * (2**k + d) for k in (0, 1, 7, 8, 15, 16, 24, 31, 32, 53, 63, 64) for d in (-1, 0, 1) for sign in (1, -1)}
)
FRACTIONS = [0.5, -1.5, -0.0, math.inf, -math.inf, math.nan, 1e300, 5e-324, 2.0**-126, 3.4e38, 65504.0, 448.0, 0.1]


def edges(dtype: np.dtype) -> np.ndarray:
    """Every value of a one-byte dtype; else the limits of all dtypes as far as it has them, and some random bits."""
    if dtype.itemsize == 1 and dtype.kind != "b":
        return np.arange(256, dtype=np.uint8).view(dtype)
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return np.array([value for value in EDGES if low <= value <= high], dtype)
    numbers = [*map(float, EDGES), *FRACTIONS]
    if dtype.kind == "c":
        numbers += [complex(1, imag) for imag in (1, -1, 0.5, 2**24 + 1, math.nan, math.inf)]
    with np.errstate(all="ignore"):
        return np.concatenate([np.array(numbers).astype(dtype), any_values(dtype, (40,), 7)])


@pytest.mark.parametrize("name", ["float16", *SMALL_FLOATS])
def test_the_oracle_knows_every_value_of_the_formats_it_describes(name: str) -> None:
    dtype = DTYPES[name][0]
    every = np.arange(256**dtype.itemsize).astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        finite = sorted(every[np.isfinite(every)].astype(float).tolist())
    some = [Fraction(value) for value in finite[:: dtype.itemsize**8]]
    assert all(part_fits(value, name) for value in some)
    assert not part_fits(Fraction(finite[-1]) * 2, name)
    assert not any(part_fits(value + abs(value) / 4096, name) for value in some if value)


# ---- exact ----


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_exact_lets_through_exactly_the_values_that_the_target_has(source: str, target: str) -> None:
    array = edges(DTYPES[source][0])
    kept = np.array([fits(number(value), target) for value in array])
    wanted = [number(value) for value in array[kept]]
    for route, (make, convert) in ROUTES.items():
        result = convert(make(array[kept]), dtype=target, casting="exact")
        result = result if isinstance(result, np.ndarray) else array_holding(result)
        assert result.dtype.name == target, route
        assert [number(value) for value in result] == wanted, route
        if not kept.all():
            with pytest.raises(nd.LossyCastError) as caught:
                convert(make(array), dtype=target, casting="exact")
            assert caught.value.index == (int(np.argmin(kept)),), route
    for value in array[~kept]:
        with pytest.raises(nd.LossyCastError):
            nd.to_torch(np.array([value]), dtype=target, casting="exact")


@pytest.mark.parametrize("target", ["float64", "float32", "int64", "uint64", "bfloat16"])
@pytest.mark.skipif(np.finfo(np.longdouble).nmant == 52, reason="long double is float64 on this machine")
def test_exact_compares_long_double_in_full(target: str) -> None:
    array = np.array([0, 1, -1, 0.5, np.inf, np.nan, 2.0**63, 2.0**64], np.longdouble)
    array = np.concatenate([array, np.nextafter(array[:6], np.longdouble(9)), np.array([2**63 - 1], np.longdouble)])
    for value in array:
        if fits(number(value), target):
            assert number(array_holding(nd.to_torch(value, dtype=target, casting="exact"))[()]) == number(value)
        else:
            with pytest.raises(nd.LossyCastError):
                nd.to_torch(np.array([value]), dtype=target, casting="exact")


@pytest.mark.parametrize("small", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.float4_e2m1fn])
def test_exact_understands_formats_that_torch_has_not(small: Any) -> None:
    array = np.array([0, 1, -2]).astype(small)
    expected = [float(x) for x in array]
    assert nd.to_torch(array, dtype="float32", casting="exact").tolist() == expected
    if min(expected) < 0:
        with pytest.raises(nd.LossyCastError) as caught:
            nd.to_torch(array, dtype="uint8", casting="exact")
        assert caught.value.index == (2,)


@pytest.mark.parametrize(
    ("value", "target", "shown", "became"),
    [
        (np.float64(math.nan), "int32", "nan", "-2147483648"),
        (np.float64(1e300), "float32", "1e+300", "inf"),
        (np.int64(2**53 + 1), "float64", "9007199254740993", "9007199254740992.0"),
        (np.int64(-(2**63)), "uint64", "-9223372036854775808", "9223372036854775808"),
        (np.uint64(2**64 - 1), "int64", "18446744073709551615", "-1"),
        (np.uint64(2**64 - 1), "float64", "18446744073709551615", "1.8446744073709552e+19"),
        (np.complex64(1 + 2j), "float32", "(1+2j)", "1.0"),
        (np.float32(0.1), "bfloat16", "0.10000000149011612", "0.10009765625"),
    ],
    ids=repr,
)
def test_lossy_cast_says_which_value_would_become_what(value: Any, target: str, shown: str, became: str) -> None:
    array = np.ones((2, 3), value.dtype)
    array[1, 2] = value
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_torch(array, dtype=target, casting="exact")
    error = caught.value
    assert f"index (1, 2): {shown} would become {became}" in str(error)
    assert (error.index, error.dtype) == ((1, 2), target)
    assert_same(error.value, value)
    assert error.became.dtype == DTYPES[target][0]
    assert str(error.became.item()) == became


# ---- exact: which index is the first ----

BIG = (300, 251)
LAYOUTS = {**SHAREABLE, **{k: v for k, v in UNSHAREABLE.items() if can_be(k, np.dtype("f8"))}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [(0, 0), (261, 25), (261, 26), (299, 250)], ids=str)
def test_first_index_is_the_first_in_row_major_order_whatever_the_layout(layout: str, bad: tuple[int, int]) -> None:
    array = np.arange(75300.0).reshape(BIG)
    array[bad] += 0.5
    array[299, 0] = array[299, 250] = 0.25  # later in row-major order, earlier in column-major order
    first = min(bad, (299, 0))
    laid_out = LAYOUTS[layout](array)
    for source, convert in ((laid_out, nd.to_torch), (laid_out, nd.to_numpy)):
        with pytest.raises(nd.LossyCastError) as caught:
            convert(source, dtype="int32", casting="exact")
        assert caught.value.index == first
        assert caught.value.value == array[first]
        assert caught.value.became == int(array[first])


@pytest.mark.parametrize("layout", SHAREABLE)
def test_first_index_in_a_strided_tensor_lies_in_a_later_block(layout: str) -> None:
    array = np.arange(75300.0).reshape(BIG)
    array[280, 3] = -1
    tensor = torch.from_numpy(SHAREABLE[layout](array))
    for convert in (nd.to_numpy, nd.to_torch):
        with pytest.raises(nd.LossyCastError) as caught:
            convert(tensor, dtype="uint64", casting="exact")
        assert (caught.value.index, caught.value.value) == ((280, 3), -1.0)


def test_first_index_in_a_broadcast_array_is_its_first_appearance() -> None:
    row = np.arange(70000.0)
    row[69999] = 0.5
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_torch(np.broadcast_to(row, (3, 70000)), dtype="int64", casting="exact")
    assert caught.value.index == (0, 69999)
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_numpy(torch.tensor([1.0, 0.5])[:, None].expand(2, 40000), dtype="int64", casting="exact")
    assert caught.value.index == (1, 0)


@pytest.mark.parametrize(
    ("source", "index"),
    [([1, 2.5], (1,)), ([[1], [2.5]], (1, 0)), (2.5, ()), (np.float64(2.5), ()), (np.array([1, 2.5], object), (1,))],
    ids=repr,
)
def test_exact_reads_python_objects_too(source: Any, index: tuple[int, ...]) -> None:
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_torch(source, dtype="int64", casting="exact")
    assert caught.value.index == index
    assert nd.to_torch(source, dtype="float32", casting="exact").dtype == torch.float32


def test_exact_sees_the_values_of_lazy_and_tracked_tensors() -> None:
    conj = torch.tensor([1 + 0j, 1 + 2j]).conj()
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_numpy(conj, dtype="float32", casting="exact")
    assert caught.value.value == 1 - 2j
    assert nd.to_numpy(torch.tensor([2 + 2j]).conj().imag, dtype="int8", casting="exact").tolist() == [-2]
    assert nd.to_numpy(torch.tensor([3.0], requires_grad=True), dtype="int8", casting="exact").tolist() == [3]


def test_exact_applies_to_float_dtype_and_passes_what_keeps_its_dtype() -> None:
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_torch({"x": np.array([0.1]), "n": np.array([2**62 + 1])}, float_dtype="float32", casting="exact")
    assert caught.value.path == "['x']"
    array = np.array([math.nan, 0.1])
    assert nd.to_torch(array, dtype="float64", casting="exact", copy=False).data_ptr() == array.ctypes.data
