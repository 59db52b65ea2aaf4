"""Sparse matrices of any sort: generated ones, where the plan must agree, and damaged ones, which are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same
from hypothesis import given
from hypothesis import strategies as st
from sparse_parts import (
    ALL,
    COMPRESSED,
    DENSE,
    DTYPES,
    LAYOUTS,
    address_of,
    csr,
    dense_of,
    matrix,
    parts_of,
    reversed_copy,
    scattered_copy,
    sp,
    state_of,
    swapped_copy,
    unaligned_copy,
    with_parts,
)

import ndtorch as nd

# Torch says once a process that these layouts are beta, to those who build them without ndtorch.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta", "ignore:Sparse invariant checks")


# ---- generated ----


@st.composite
def matrices(draw: st.DrawFn) -> Any:
    """Any sound matrix that scipy.sparse can hold, in any order, with any indices and memory."""
    layout = draw(st.sampled_from(LAYOUTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns, count = (draw(st.integers(0, n)) for n in (4, 4, 8))
    count = count if rows and columns else 0
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    block = (draw(st.integers(1, 2)), draw(st.integers(1, 3))) if layout == "bsr" else ()
    data = rng.integers(0, 3, (count, *block)).astype(dtype)
    if draw(st.booleans()):
        data = draw(st.sampled_from([reversed_copy, unaligned_copy, scattered_copy, swapped_copy]))(data)
    index = (
        draw(st.sampled_from(["i4", "i8", "i8", "u4", "i2", ">i8"])),
        draw(st.sampled_from(["i4", "i8", "i8", "u1"])),
    )
    i, j = rng.integers(0, max(rows, 1), count), rng.integers(0, max(columns, 1), count)
    if layout == "coo":
        source = with_parts("coo", (rows, columns), coords=(i.astype(index[0]), j.astype(index[1])), data=data)
    else:
        if draw(st.booleans()):  # in order, without duplicates
            places = np.unique(i * max(columns, 1) + j)
            i, j, data = places // max(columns, 1), places % max(columns, 1), data[: len(places)]
        starts = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=rows))]).astype(index[0])
        j = j[np.argsort(i, kind="stable")]
        shape = (rows * (block or (1, 1))[0], columns * (block or (1, 1))[1])
        source = csr(starts, j.astype(index[1]), data, shape[::-1] if layout == "csc" else shape, layout)
    for part in parts_of(source).values():
        part.flags.writeable = draw(st.integers(0, 5)) > 0
    return source


@given(
    source=matrices(),
    copy=st.sampled_from([None, None, True, False]),
    readonly=st.sampled_from(["copy", "share"]),
    dtype=st.sampled_from([None, None, "float64", "complex128"]),
)
def test_any_matrix_comes_out_equal_or_not_at_all_as_the_plan_says(
    source: Any, copy: bool | None, readonly: str, dtype: str | None
) -> None:
    before, expected = state_of(source), dense_of(source)
    options = {"copy": copy, "readonly": readonly, "dtype": dtype}
    plan = nd.explain(source, **options)
    assert state_of(source) == before
    if plan.error is not None:
        with pytest.raises(type(plan.error)) as raised:
            nd.to_torch(source, **options)
        assert str(raised.value) == str(plan.error)
        assert copy is False
        return
    tensor = nd.to_torch(source, **options)
    assert state_of(source) == before
    assert_same(dense_of(tensor), expected.astype(dtype or expected.dtype.newbyteorder("=")))
    check_plan(plan, source, tensor)
    back = nd.to_numpy(tensor)
    assert_same(dense_of(back), dense_of(tensor))
    assert nd.explain(tensor, to="numpy").shares
    again = nd.to_torch(back, copy=False)
    assert all(address_of(x) == address_of(y) for x, y in pairs_of(again, tensor))


def pairs_of(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Parts of two sparse objects that have any bytes."""
    for name, part in parts_of(a).items():
        if part.nbytes:
            yield part, parts_of(b)[name]


def check_plan(plan: nd.Plan, source: Any, tensor: torch.Tensor) -> None:
    """Each part shares memory exactly when its plan says so, and the whole when all do."""
    given, found = parts_of(source), parts_of(tensor)
    shared = {}
    for name, part in found.items():
        path = ".coords" if name.startswith("coords") else f".{name}"
        if part.nbytes:
            shared[path] = address_of(part) == address_of(given[name])
            assert plan.leaves[path].shares == shared[path], path
    assert plan.shares == all(shared.values())
    assert plan.shares == (plan.reason == "") == all(leaf.shares for leaf in plan.leaves.values())


# ---- hostile ----


def mutated(layout: str, **parts: Any) -> Any:
    source = matrix(layout)
    for name, part in parts.items():
        setattr(source, name, part)
    return source


def _lil(**rows: Any) -> Any:
    source = matrix("lil")
    for name, row in rows.items():
        getattr(source, name)[0] = row
    return source


I = np.array  # noqa: E741 - the index arrays below would not fit a line
HOSTILE = {
    "index past the end": (lambda: mutated("csr", indices=I([1, 4, 0, 3])), "indices has 4, outside of 0 to 3"),
    "index far past the end": (lambda: mutated("csr", indices=I([1, 2**40, 0, 3])), "outside of 0 to 3"),
    "negative index": (lambda: mutated("csr", indices=I([1, -1, 0, 3])), "indices has -1, outside"),
    "unsigned index past the end": (lambda: mutated("csr", indices=I([1, 2**64 - 1, 0, 3], "u8")), "outside of 0"),
    "csc index past the end": (lambda: mutated("csc", indices=I([1, 0, 3, 2])), "outside of 0 to 2"),
    "bsr index past the end": (lambda: mutated("bsr", indices=I([1, 9, 0, 3])), "outside of"),
    "indptr falls": (lambda: mutated("csr", indptr=I([0, 3, 2, 4])), "indptr decreases at index 2"),
    "indptr begins late": (lambda: mutated("csr", indptr=I([1, 2, 3, 4])), "indptr begins with 1"),
    "indptr begins below 0": (lambda: mutated("csr", indptr=I([-1, 2, 3, 4])), "indptr begins with -1"),
    "indptr too short": (lambda: mutated("csr", indptr=I([0, 4])), "indptr has 2 entries instead of 4"),
    "indptr too long": (lambda: mutated("csr", indptr=I([0, 1, 2, 3, 4])), "indptr has 5 entries"),
    "no indptr": (lambda: mutated("csr", indptr=I([], "i4")), "indptr has 0 entries"),
    "indptr past the end": (lambda: mutated("csr", indptr=I([0, 2, 3, 2**40])), "indptr ends at 1099511627776"),
    "too few indices": (lambda: mutated("csr", indices=I([0])), "ends at 4, but it has 1 indices"),
    "too few values": (lambda: mutated("csr", data=I([1.0])), "ends at 4, but it has 4 indices and 1 values"),
    "indices are floats": (lambda: mutated("csr", indices=I([1.0, 3, 0, 3])), r"indices is float64\[4\]"),
    "indices are objects": (lambda: mutated("csr", indices=I([1, 3, 0, None])), r"indices is object\[4\]"),
    "indices are bool": (lambda: mutated("csr", indices=I([True, False, True, False])), r"indices is bool"),
    "indices are a list": (lambda: mutated("csr", indices=[1, 3, 0, 3]), "indices is a list"),
    "indices are None": (lambda: mutated("csr", indices=None), "indices is a NoneType"),
    "indices are a matrix": (lambda: mutated("csr", indices=I([[1, 3], [0, 3]])), r"indices is int64\[2, 2\]"),
    "values are a matrix": (lambda: mutated("csr", data=np.ones((4, 1))), "data has 2 dimensions"),
    "values are flat blocks": (lambda: mutated("bsr", data=np.ones(4)), "data has 1 dimensions"),
    "blocks do not fit": (lambda: mutated("bsr", data=np.ones((4, 2, 3))), "do not fill its shape"),
    "blocks are empty": (lambda: mutated("bsr", data=np.ones((4, 0, 1))), "do not fill its shape"),
    "coordinate past the end": (
        lambda: mutated("coo", coords=(I([0, 0, 1, 3]), I([1, 3, 0, 3]))),
        r"coords\[0\] has 3",
    ),
    "negative coordinate": (lambda: mutated("coo", coords=(I([0, 0, 1, 2]), I([1, -3, 0, 3]))), r"coords\[1\] has -3"),
    "coordinates too few": (lambda: mutated("coo", coords=(I([0, 0, 1]), I([1, 3, 0]))), "3 indices for 4 values"),
    "one axis of coordinates": (lambda: mutated("coo", coords=(I([0, 0, 1, 1]),)), "2 dimensions, but coords for 1"),
    "no coordinates": (lambda: mutated("coo", coords=()), "coords for 0"),
    "coordinates are None": (lambda: mutated("coo", coords=(None, None)), "NoneType"),
    "coordinates are floats": (lambda: mutated("coo", coords=(np.zeros(4), np.zeros(4))), "float64"),
    "coo values are a matrix": (lambda: mutated("coo", data=np.ones((2, 2))), "data has 2 dimensions"),
    "offsets too many": (lambda: mutated("dia", offsets=np.arange(50)), "offsets are int64"),
    "offsets twice": (lambda: mutated("dia", offsets=np.zeros(len(matrix("dia").offsets), "i8")), "stands twice"),
    "offset past all": (
        lambda: mutated("dia", offsets=I([2**63, 0, 1, 2, 3], "u8")[: len(matrix("dia").offsets)]),
        "offset 92",
    ),
    "diagonals are flat": (lambda: mutated("dia", data=np.ones(4)), "for data of shape"),
    "lil row past the end": (lambda: _lil(rows=[1, 9]), "outside of 0 to 3"),
    "lil row negative": (lambda: _lil(rows=[1, -2]), "has -2, outside of 0 to 3"),
    "lil rows longer than values": (lambda: _lil(rows=[0, 1, 2]), "row 0 are not two lists of one length"),
    "lil values longer than rows": (lambda: _lil(data=[1.0] * 9), "row 0 are not two lists of one length"),
    "lil row is text": (lambda: _lil(rows="ab"), "row 0 are not two lists"),
    "lil with a row too few": (lambda: mutated("lil", rows=matrix("lil").rows[:1]), r"rows of shape \(1,\)"),
    "values are objects": (lambda: mutated("csr", data=I([None] * 4)), "does not compute on object"),
    "values are time": (lambda: mutated("csr", data=np.zeros(4, "M8[s]")), r"does not compute on datetime64"),
    "values are fields": (lambda: mutated("csr", data=np.zeros(4, "i4,i4")), "does not compute on"),
    "values are text": (lambda: mutated("coo", data=np.zeros(4, "U1")), "does not compute on"),
    "values are missing": (lambda: mutated("csr", data=None), "could not hand it out"),
    "too many places": (lambda: sp.coo_array((2**40, 2**40)), "more places than torch can count"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_unsound_matrix_is_refused_and_never_followed(name: str) -> None:
    make, fact = HOSTILE[name]
    source = make()
    with pytest.raises(nd.NdtorchError, match=fact) as raised:
        nd.to_torch({"m": source})
    assert raised.value.path == "['m']"
    assert raised.value.hint
    assert str(nd.explain(source).error) == str(raised.value)
    with pytest.raises(nd.NdtorchError):
        nd.to_torch(source, copy=True, dtype="float64", casting="unsafe")


@pytest.mark.parametrize("name", HOSTILE)
def test_unsound_matrix_stays_itself_on_numpys_side(name: str) -> None:
    source = HOSTILE[name][0]()
    for options in ({}, {"copy": True}, {"dtype": "complex128"}):
        try:
            nd.to_numpy(source, **options)
            nd.explain(source, to="numpy", **options)
            nd.shares_memory(source, np.ones(2))
        except nd.NdtorchError:
            pass


@pytest.mark.parametrize(
    "name", sorted(HOSTILE.keys() - {"indices are a list"})
)  # NumPy's side makes a sound array of it
def test_unsound_matrix_is_not_followed_into_another_layout(name: str) -> None:
    source = HOSTILE[name][0]()
    like = matrix("csc" if source.format != "csc" else "csr", "c16")
    try:
        nd.to_numpy(source, like=like)
    except nd.NdtorchError:
        return
    raise AssertionError("it was converted")


def test_unsound_tensor_is_not_followed_into_another_layout() -> None:
    words = {"layout": torch.sparse_csr, "check_invariants": False}
    tensor = torch.sparse_compressed_tensor([0, 1, 2], [2**40, -5], [1.0, 2.0], (2, 3), **words)
    assert nd.to_numpy(tensor).indices.tolist() == [2**40, -5]
    with pytest.raises(nd.UnsupportedTypeError, match="outside of 0 to 2"):
        nd.to_numpy(tensor, like=matrix("coo", "f4"))


def test_diagonals_with_any_offsets_are_right_or_refused() -> None:
    rng = np.random.default_rng(0)
    offsets = np.array([-(2**63), -(2**31), -7, -1, 0, 1, 2, 5, 2**31, 2**62, 2**63 - 1])
    converted = 0
    for _ in range(500):
        rows, columns, length, count = rng.integers((0, 0, 0, 0), (6, 6, 7, 5)).tolist()
        source = sp.dia_array((rows, columns))
        source.offsets = rng.choice(offsets, count).astype(rng.choice(["i1", "i4", "i8", "u1", "u8"]))
        source.data = np.arange(1.0, count * length + 1).reshape(count, length)
        try:
            tensor = nd.to_torch(source)
        except nd.UnsupportedTypeError:
            continue
        expected = np.zeros((rows, columns))
        for k, offset in enumerate(source.offsets.tolist()):
            for j in range(max(offset, 0), min(length, columns, rows + offset)):
                expected[j - offset, j] = source.data[k, j]
        assert_same(tensor.to_dense().numpy(), expected)
        converted += 1
    assert 100 < converted < 400


@pytest.mark.parametrize("layout", [*COMPRESSED, "coo"])
def test_random_damage_is_refused_or_sound_by_torchs_own_check(layout: str) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        source = matrix(layout)
        names = [name for name in parts_of(source) if name != "data"]
        name = names[rng.integers(len(names))]
        part = parts_of(source)[name].astype(rng.choice(["i4", "i8", "u4", "u8", "i1"]))
        with np.errstate(all="ignore"):
            part[rng.integers(part.size)] += rng.choice([-(2**31), -3, -1, 1, 2, 2**30]).astype(part.dtype)
        part = part[: rng.integers(part.size - 1, part.size + 1)]
        if layout == "coo":
            coords = list(source.coords)
            coords[int(name[-1])] = part
            source.coords = tuple(coords)
        else:
            setattr(source, name, part)
        before = state_of(source)
        try:
            tensor = nd.to_torch(source)
        except nd.NdtorchError:
            refused += 1
            continue
        finally:
            assert state_of(source) == before
        if layout == "coo":
            indices, values = tensor._indices(), tensor._values()
            torch.sparse_coo_tensor(indices, values, tensor.shape, check_invariants=True)
        else:
            words = {"layout": tensor.layout, "check_invariants": True}
            torch.sparse_compressed_tensor(*parts_of(tensor).values(), tensor.shape, **words)
        assert_same(dense_of(tensor), dense_of(source))
    assert 100 < refused < 400


def test_matrix_without_its_arrays_is_refused() -> None:
    for layout, name in (("csr", "indptr"), ("coo", "coords"), ("dia", "offsets"), ("lil", "rows"), ("dok", "_dict")):
        source = matrix(layout)
        delattr(source, name)
        with pytest.raises(nd.NdtorchError):
            nd.to_torch(source)
        with pytest.raises(nd.NdtorchError):
            nd.to_numpy(source, copy=True)


def test_half_values_that_scipy_cannot_sort_are_refused() -> None:
    sound = csr([0, 2], [0, 1], np.array([1, 2], "f2"), (1, 2))
    assert nd.to_torch(sound, copy=False).dtype == torch.float16
    with pytest.raises(nd.NdtorchError, match="could not hand it out"):
        nd.to_torch(csr([0, 2], [1, 0], np.array([1, 2], "f2"), (1, 2)))


def test_torchs_own_checks_run_where_they_are_switched_on() -> None:
    with torch.sparse.check_sparse_tensor_invariants():
        for layout in ALL:
            assert_same(dense_of(nd.to_torch(matrix(layout))), DENSE * 1.0)


def test_long_rows_are_checked_across_blocks() -> None:
    count = 1_000_000
    source = csr([0, count], np.arange(count), np.ones(count, "i1"), (1, count))
    assert nd.explain(source).shares
    for place in (1 << 17, (1 << 17) - 1, count - 1):
        source.indices[place] = place - 1
        assert "stands twice" in nd.explain(source).reason
        source.indices[place] = count
        assert f"indices has {count}, outside" in str(nd.explain(source).error)
        source.indices[place] = place
