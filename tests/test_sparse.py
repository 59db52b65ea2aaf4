"""Sparse matrices of scipy.sparse to torch: layouts, indices, memory, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares
from sparse_parts import (
    ALL,
    BY_CSR,
    COMPRESSED,
    DENSE,
    DTYPES,
    LAYOUTS,
    TORCH_LAYOUT,
    address_of,
    assert_all_share,
    csr,
    dense_of,
    matrix,
    parts_of,
    reversed_copy,
    scattered_copy,
    sp,
    state_of,
    swapped_copy,
    tensor_of,
    unaligned_copy,
    with_parts,
)

import ndtorch as nd

# Torch says once a process that these layouts are beta, to those who build them without ndtorch.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta", "ignore:Sparse invariant checks")


# ---- to torch ----


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", COMPRESSED)
def test_compressed_matrix_becomes_a_tensor_of_its_layout_over_its_memory(layout: str, dtype: str, kind: str) -> None:
    source = matrix(layout, dtype, kind=kind)
    before = state_of(source)
    plan, tensor = nd.explain(source), nd.to_torch(source)
    assert (tensor.layout, tensor.dtype) == (TORCH_LAYOUT[layout], getattr(torch, dtype))
    assert_same(dense_of(tensor), DENSE.astype(dtype))
    assert plan.shares
    assert plan.nbytes_copied == 0
    assert str(plan).startswith(f"{layout} ")
    assert_all_share(tensor, source)
    assert state_of(source) == before
    torch.sparse_compressed_tensor(
        *parts_of(tensor).values(), tensor.shape, layout=tensor.layout, check_invariants=True
    )


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_coo_matrix_becomes_a_coo_tensor_that_shares_its_values(dtype: str, index: Any, kind: str) -> None:
    source = matrix("coo", dtype, kind=kind)
    source.coords = tuple(indices.astype(index) for indices in source.coords)
    before = state_of(source)
    plan, tensor = nd.explain(source), nd.to_torch(source)
    assert (tensor.layout, tensor.dtype) == (torch.sparse_coo, getattr(torch, dtype))
    assert_same(tensor._indices(), torch.tensor(np.array(source.coords, np.int64)))
    assert_shares(tensor._values(), source.data)
    assert "one int64 matrix" in plan.reason
    assert plan.nbytes_copied == tensor._indices().nbytes
    assert plan.leaves[".data"].shares
    assert "tensor.coalesce()" in plan.notes[0]
    assert not tensor.is_coalesced()
    assert state_of(source) == before


def test_coordinates_that_are_rows_of_one_int64_matrix_are_shared() -> None:
    whole = np.array([[9, 9, 9, 9], [9, 0, 2, 9], [9, 1, 0, 9], [9, 1, 3, 9]])
    for rows in (whole[1:3, 1:3], whole[1::2, 1:3], whole[:, 1:3][[1, 2]]):
        source = with_parts("coo", (4, 4), coords=tuple(rows), data=np.array([1.0, 2]))
        tensor = nd.to_torch(source, copy=False)
        assert_all_share(tensor, source)
        assert_same(dense_of(tensor), source.toarray())
    upwards = with_parts("coo", (4, 4), coords=(whole[2, 1:3], whole[1, 1:3]), data=np.array([1.0, 2]))
    assert "negative stride" in nd.explain(upwards).reason
    assert_same(dense_of(nd.to_torch(upwards)), upwards.toarray())


def test_coordinates_are_joined_only_where_they_lie_at_equal_distances() -> None:
    whole = np.arange(40).reshape(5, 8) % 3
    for coords in ((whole[0], whole[1], whole[3]), (whole[0], whole[1].copy(), whole[2]), (whole[0], whole[1, ::-1])):
        source = with_parts("coo", (3,) * len(coords), coords=coords, data=np.arange(8.0))
        assert "one int64 matrix" in nd.explain(source).reason
        tensor = nd.to_torch(source)
        assert_same(tensor._indices().numpy(), np.array(coords))


def test_writable_coordinates_do_not_make_read_only_ones_writable() -> None:
    whole = np.zeros((2, 3), np.int64)
    rows = whole[0], whole[1]
    rows[1].flags.writeable = False
    source = with_parts("coo", (1, 1), coords=rows, data=np.ones(3))
    assert nd.explain(source).leaves[".coords"].reason == "it is read-only"
    assert_independent(nd.to_torch(source)._indices(), whole)


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("layout", BY_CSR)
def test_layout_that_torch_lacks_becomes_csr_and_the_plan_says_why(layout: str, kind: str) -> None:
    for dtype in DTYPES:
        source = matrix(layout, dtype, kind=kind)
        tensor, plan = nd.to_torch(source), nd.explain(source)
        assert (tensor.layout, tensor.dtype) == (torch.sparse_csr, getattr(torch, dtype))
        assert_same(dense_of(tensor), DENSE.astype(dtype))
        assert f"torch has no {layout.upper()} layout: it becomes CSR" in plan.reason
        assert plan.nbytes_copied == sum(part.nbytes for part in parts_of(tensor).values())
        assert (source.toarray() == DENSE.astype(dtype)).all()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (2, 1, 3, 2)])
def test_coo_array_of_any_number_of_dimensions_becomes_a_coo_tensor(shape: tuple[int, ...]) -> None:
    dense = np.arange(np.prod(shape)).reshape(shape) % 3 * 1.5
    source = sp.coo_array(dense)
    tensor = nd.to_torch(source)
    assert_same(tensor.to_dense(), torch.tensor(dense))
    assert_shares(tensor._values(), source.data)
    back = nd.to_numpy(tensor)
    assert_same(back.toarray(), dense)
    assert_all_share(back, tensor)


@pytest.mark.parametrize("layout", ["csr", "dok"])
def test_vector_becomes_coo_since_torch_has_no_other(layout: str) -> None:
    dense = np.array([0.0, 1, 0, 2])
    source = matrix(layout, dense=dense)
    tensor = nd.to_torch(source)
    assert tensor.layout == torch.sparse_coo
    assert_same(tensor.to_dense(), torch.tensor(dense))
    plan = nd.explain(source)
    assert plan.leaves[".data"].shares == (layout == "csr")
    if layout == "csr":
        assert_shares(tensor._values(), source.data)
    assert_same(nd.to_numpy(tensor, like=source).toarray(), dense)


def test_vector_with_long_indices_is_shared_whole() -> None:
    source = csr([0, 2], np.array([1, 3]), np.array([1.0, 2]), (4,))
    tensor = nd.to_torch(source, copy=False)
    assert_shares(tensor._indices()[0], source.indices)
    assert_shares(tensor._values(), source.data)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (3, 4)])
@pytest.mark.parametrize("layout", ALL)
def test_empty_matrix_keeps_its_shape_both_ways(layout: str, shape: tuple[int, int]) -> None:
    source = getattr(sp, f"{layout}_array")(shape, dtype="f4")
    tensor = nd.to_torch(source)
    assert (tensor.shape, tensor.dtype) == (shape, torch.float32)
    back = nd.to_numpy(tensor, like=source)
    assert (type(back), back.shape, back.dtype, back.nnz) == (type(source), shape, np.float32, 0)
    if layout in LAYOUTS:
        assert nd.explain(source).shares
        nd.to_torch(source, copy=False)


# ---- indices ----


@pytest.mark.parametrize("layout", COMPRESSED)
@pytest.mark.parametrize(("starts", "places"), [("i4", "i8"), ("i8", "i4"), ("i8", "i8"), ("u2", "i4"), (">i4", "i4")])
def test_index_widths_are_made_equal_and_the_plan_counts_it(layout: str, starts: str, places: str) -> None:
    source = matrix(layout)
    source.indptr, source.indices = source.indptr.astype(starts), source.indices.astype(places)
    plan, tensor = nd.explain(source), nd.to_torch(source)
    found, given = parts_of(tensor), parts_of(source)
    wide = torch.int32 if np.dtype(starts).newbyteorder("=") == np.int32 == np.dtype(places) else torch.int64
    for name in ("indptr", "indices"):
        assert found[name].dtype == wide
        assert found[name].tolist() == given[name].tolist()
        assert plan.leaves[f".{name}"].shares == (address_of(found[name]) == address_of(given[name]))
    assert plan.nbytes_copied == sum(found[n].nbytes for n in found if address_of(found[n]) != address_of(given[n]))
    assert_shares(found["data"], source.data)


def test_int32_indices_become_int64_where_a_side_is_longer_than_they_reach() -> None:
    source = csr(np.array([0, 1], "i4"), np.array([5], "i4"), [1.0], (1, 2**40))
    tensor = nd.to_torch(source)
    assert tensor.col_indices().dtype == torch.int64
    assert tensor.to_sparse_coo().shape == (1, 2**40)


@pytest.mark.parametrize("layout", COMPRESSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_out_of_order_are_put_in_order_in_a_copy(layout: str, dtype: str) -> None:
    data = np.array([1, 2, 3, 4, 5]).astype(dtype)
    if layout == "bsr":
        data = np.stack([np.full((2, 3), x) for x in data])
    shape = (4, 9) if layout == "bsr" else (3, 2) if layout == "csc" else (2, 3)
    source = csr([0, 3, 5], [2, 0, 1, 1, 0], data, shape, layout)
    before = state_of(source)
    tensor, plan = nd.to_torch(source), nd.explain(source)
    assert parts_of(tensor)["indices"].tolist() == [0, 1, 2, 0, 1]
    assert_same(dense_of(tensor), dense_of(source))
    assert "not in order, or one stands twice" in plan.reason
    assert state_of(source) == before
    with pytest.raises(nd.CopyRequiredError, match="not in order"):
        nd.to_torch(source, copy=False)
    for name, part in parts_of(tensor).items():
        assert_independent(part, parts_of(source)[name])


@pytest.mark.parametrize("layout", COMPRESSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_one_place_are_added_up_in_a_copy(layout: str, dtype: str) -> None:
    data = np.array([1, 2, 3, 4, 5]).astype(dtype)
    if layout == "bsr":
        data = np.stack([np.full((2, 3), x) for x in data])
    shape = (4, 9) if layout == "bsr" else (3, 2) if layout == "csc" else (2, 3)
    source = csr([0, 3, 5], [1, 1, 2, 0, 0], data, shape, layout)
    before = state_of(source)
    tensor = nd.to_torch(source)
    assert parts_of(tensor)["indices"].tolist() == [1, 2, 0]
    assert_same(dense_of(tensor), dense_of(source))
    assert state_of(source) == before


def test_duplicates_and_disorder_of_coo_are_kept() -> None:
    source = sp.coo_array((np.array([1.0, 2, 4]), ([1, 0, 1], [0, 1, 0])), shape=(2, 2))
    tensor = nd.to_torch(source)
    assert tensor._nnz() == 3
    assert_same(tensor.to_dense(), torch.tensor([[0.0, 2], [5, 0]], dtype=torch.float64))
    back = nd.to_numpy(tensor)
    assert (back.nnz, back.has_canonical_format) == (3, False)
    assert_same(back.tocsr().toarray(), source.toarray())
    back.sum_duplicates()
    assert back.nnz == 2


@pytest.mark.parametrize("says", [True, False])
def test_flags_that_scipy_caches_are_neither_believed_nor_changed(says: bool) -> None:
    source = csr([0, 2], [1, 0], [1.0, 2], (1, 2)) if says else csr([0, 2], [0, 1], [1.0, 2], (1, 2))
    source.has_canonical_format = source.has_sorted_indices = says  # stale: indices were written to since
    before = state_of(source)
    assert nd.explain(source).shares == (not says)
    tensor = nd.to_torch(source)
    assert tensor.col_indices().tolist() == [0, 1]
    assert tensor.to_dense().tolist() == source.toarray().tolist()
    assert state_of(source) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_explicit_zeros_are_kept_both_ways(layout: str) -> None:
    source = matrix(layout)
    source.data[...] = 0
    tensor = nd.to_torch(source)
    assert tensor._nnz() == len(source.data)
    assert nd.to_numpy(tensor).nnz == source.nnz


@pytest.mark.parametrize("layout", COMPRESSED)
def test_room_after_the_last_value_is_left_out_and_the_rest_shared(layout: str) -> None:
    source = matrix(layout)
    expected = source.toarray()
    source.indices = np.concatenate([source.indices, [-7, 99]]).astype(source.indices.dtype)
    source.data = np.concatenate([source.data, source.data[:2]])
    tensor = nd.to_torch(source, copy=False)
    assert_same(dense_of(tensor), expected)
    for name, part in parts_of(tensor).items():
        assert_shares(part, parts_of(source)[name])


# ---- memory ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_write_through_the_tensor_is_seen_in_the_matrix_and_back(layout: str) -> None:
    source = matrix(layout)
    tensor = nd.to_torch(source)
    parts_of(tensor)["data"].mul_(10)
    assert_same(source.toarray(), DENSE * 10.0)
    source.data /= 2
    assert_same(tensor.to_dense().numpy(), DENSE * 5.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copy_true_shares_nothing(layout: str) -> None:
    source = matrix(layout)
    tensor = nd.to_torch(source, copy=True)
    for name, part in parts_of(tensor).items():
        assert_independent(part, parts_of(source)[name])
    assert not nd.explain(source, copy=True).shares
    back = nd.to_numpy(tensor, copy=True)
    for name, part in parts_of(back).items():
        assert_independent(part, parts_of(tensor)[name])


def test_copy_false_names_the_part_that_would_be_copied() -> None:
    source = matrix("csr")
    nd.to_torch(source, copy=False)
    source.indices = source.indices[::-1].copy()[::-1]
    with pytest.raises(nd.CopyRequiredError, match="side by side") as raised:
        nd.to_torch({"a": [source]}, copy=False)
    assert raised.value.path == "['a'][0].indices"
    with pytest.raises(nd.CopyRequiredError, match="one int64 matrix") as raised:
        nd.to_torch(matrix("coo"), copy=False)
    assert raised.value.path == ".coords"
    with pytest.raises(nd.CopyRequiredError, match="no DIA layout"):
        nd.to_torch(matrix("dia"), copy=False)
    with pytest.raises(nd.CopyRequiredError, match="float32 was asked for") as raised:
        nd.to_torch(matrix("csr"), dtype="float32", copy=False)
    assert raised.value.path == ".data"


@pytest.mark.parametrize("layout", COMPRESSED)
@pytest.mark.parametrize("name", ["indptr", "indices", "data"])
def test_read_only_part_is_copied_shared_or_refused_as_asked(layout: str, name: str) -> None:
    source = matrix(layout)
    getattr(source, name).flags.writeable = False
    plan, tensor = nd.explain(source), nd.to_torch(source)
    for other, part in parts_of(source).items():
        (assert_independent if other == name else assert_shares)(parts_of(tensor)[other], part)
        assert plan.leaves[f".{other}"].shares == (other != name)
    assert plan.leaves[f".{name}"].reason == "it is read-only"
    shared = nd.to_torch(source, readonly="share", copy=False)
    assert all(address_of(part) == address_of(parts_of(source)[n]) for n, part in parts_of(shared).items())
    for options in ({"copy": False}, {"readonly": "error"}):
        with pytest.raises(nd.CopyRequiredError, match="read-only") as raised:
            nd.to_torch(source, **options)
        assert raised.value.path == f".{name}"


def test_memory_mapped_parts_are_mapped_privately(tmp_path: Any) -> None:
    source = matrix("csr")
    expected = source.toarray()
    for name, part in parts_of(source).items():
        np.save(tmp_path / f"{name}.npy", part)
        setattr(source, name, np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    tensor = nd.to_torch(source)
    assert [leaf.action for leaf in nd.explain(source).leaves.values()] == ["map"] * 3
    tensor.values().mul_(2)
    assert_same(dense_of(tensor), expected * 2)
    assert_same(source.toarray(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lay_out", [reversed_copy, unaligned_copy, scattered_copy, swapped_copy])
def test_parts_in_any_memory_layout_give_the_same_tensor(layout: str, lay_out: Any) -> None:
    expected = nd.to_torch(matrix(layout))
    for name in parts_of(matrix(layout)):
        source = matrix(layout)
        if name.startswith("coords"):
            source.coords = tuple(map(lay_out, source.coords))
        else:
            setattr(source, name, lay_out(getattr(source, name)))
        before = state_of(source)
        tensor, plan = nd.to_torch(source), nd.explain(source)
        assert_same(parts_of(tensor), parts_of(expected))
        assert state_of(source) == before
        shares = address_of(parts_of(tensor)[name]) == address_of(parts_of(source)[name])
        assert shares == (lay_out is scattered_copy and name == "data")  # torch takes scattered values
        assert plan.leaves[".coords" if name.startswith("coords") else f".{name}"].shares == shares
        vector = torch.arange(4.0, dtype=torch.float64)
        assert_same(tensor @ vector, tensor.to_dense() @ vector)


def test_one_value_that_stands_for_all_stays_one() -> None:
    source = matrix("csr")
    source.data = np.broadcast_to(np.float64(3), source.data.shape)
    tensor = nd.to_torch(source)
    assert tensor.values().stride() == (0,)
    assert_same(dense_of(tensor), np.where(DENSE, 3.0, 0))


def test_transposed_blocks_are_shared() -> None:
    source = sp.bsr_array(np.kron(np.eye(2), np.arange(1.0, 7).reshape(2, 3)), blocksize=(2, 3)).T
    tensor = nd.to_torch(source, copy=False)
    assert_same(dense_of(tensor), source.toarray())
    assert_all_share(tensor, source)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_outlives_the_object_it_came_from(layout: str) -> None:
    tensor = nd.to_torch(matrix(layout))
    back = nd.to_numpy(nd.to_torch(matrix(layout)))
    _ = [np.ones(8) for _ in range(50)]
    assert_same(dense_of(tensor), DENSE * 1.0)
    assert_same(back.toarray(), DENSE * 1.0)


# ---- options ----


@pytest.mark.parametrize("layout", ALL)
def test_dtype_casts_the_values_and_leaves_the_indices(layout: str) -> None:
    source = matrix(layout)
    for options in ({"dtype": "float32"}, {"float_dtype": "float32"}, {"dtype": torch.int16, "casting": "exact"}):
        tensor, plan = nd.to_torch(source, **options), nd.explain(source, **options)
        parts = parts_of(tensor)
        data = parts.pop("data")
        assert data.dtype == options.get("dtype", torch.float32) or data.dtype == torch.float32
        assert_same(dense_of(tensor), DENSE.astype(data.numpy().dtype))
        assert {part.dtype for part in parts.values()} <= {torch.int32, torch.int64}
        assert plan.leaves[".data"].dtype == str(data.dtype).removeprefix("torch.")
        if layout in COMPRESSED:
            assert all(address_of(part) == address_of(parts_of(source)[name]) for name, part in parts.items())
    assert nd.to_torch(matrix(layout, "i4"), float_dtype="float32").dtype == torch.int32
    assert nd.to_torch(source, dtype="bfloat16").dtype == torch.bfloat16


def test_lossy_cast_names_the_value_and_the_part() -> None:
    source = matrix("csr")
    source.data[2] = 2.5
    with pytest.raises(nd.LossyCastError) as raised:
        nd.to_torch([source], dtype="int32", casting="exact")
    assert (raised.value.path, raised.value.index, raised.value.value) == ("[0].data", (2,), 2.5)
    with pytest.raises(nd.LossyCastError, match="same_kind"):
        nd.to_torch(source, dtype="int32")
    with pytest.raises(nd.LossyCastError, match="same_kind"):
        nd.to_numpy(nd.to_torch(source), dtype="int32")
    with pytest.raises(nd.LossyCastError):
        nd.to_numpy(nd.to_torch(source), dtype="int32", casting="exact")


def test_long_double_is_refused_with_the_cast_that_helps() -> None:
    source = matrix("csr", np.longdouble)
    with pytest.raises(nd.UnsupportedDtypeError, match="dtype='float64'"):
        nd.to_torch(source)
    assert_same(dense_of(nd.to_torch(source, dtype="float64", casting="exact")), DENSE * 1.0)


@pytest.mark.parametrize("layout", ALL)
def test_device_and_masked_change_nothing_on_the_cpu(layout: str) -> None:
    source = matrix(layout)
    for options in ({"device": "cpu"}, {"masked": "split"}, {"masked": "nan"}):
        tensor = nd.to_torch(source, **options)
        assert tensor.layout == TORCH_LAYOUT.get(layout, torch.sparse_csr)
        assert nd.explain(source, **options).shares == (layout in COMPRESSED)


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrix_goes_to_a_gpu_and_back(layout: str) -> None:
    source = matrix(layout)
    tensor = nd.to_torch(source, device="cuda")
    assert tensor.device.type == "cuda"
    assert_same(nd.to_numpy(tensor).toarray(), DENSE * 1.0)
    assert not nd.shares_memory(source, tensor)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_meta_device_keeps_layout_and_shape(layout: str) -> None:
    tensor = nd.to_torch(matrix(layout), device="meta")
    assert (tensor.layout, tensor.shape, tensor.is_meta) == (TORCH_LAYOUT[layout], DENSE.shape, True)


def test_structures_may_contain_matrices() -> None:
    dok = matrix("dok")
    source = {"x": matrix("csr"), "y": [matrix("coo"), np.ones(2)], "z": (dok, "text")}
    result = nd.to_torch(source)
    assert result["x"].layout == torch.sparse_csr
    assert result["y"][0].layout == torch.sparse_coo
    assert_same(result["z"][0].to_dense().numpy(), DENSE * 1.0)
    assert result["z"][1] == "text"
    back = nd.to_numpy(result, like=source)
    assert [type(x) for x in (back["x"], back["y"][0], back["z"][0])] == [sp.csr_array, sp.coo_array, sp.dok_array]
    plan = nd.explain(source)
    assert plan.leaves["['x']"].shares
    assert not plan.leaves["['z'][0]"].shares


def test_trace_sees_every_part_and_can_forbid_copies() -> None:
    with nd.trace() as seen:
        nd.to_torch({"m": matrix("coo")})
    assert [(r.path, r.shared, r.nbytes_copied) for r in seen] == [("['m'].coords", False, 64), ("['m'].data", True, 0)]
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError, match="one int64 matrix"):
        nd.to_torch(matrix("coo"))
    with nd.trace(forbid_copies=True) as seen:
        nd.to_numpy(nd.to_torch(matrix("csr")))
    assert len(seen) == 6
    assert all(record.shared for record in seen)


# ---- what plain torch does ----


def test_plain_torch_does_not_take_a_matrix() -> None:
    with pytest.raises(TypeError, match="sparse array length is ambiguous"):
        torch.tensor(matrix("csr"))
    with pytest.raises(TypeError):
        torch.from_numpy(matrix("csr"))


def test_plain_scipy_copies_long_indices_to_short_ones() -> None:
    tensor = tensor_of("csr")
    indptr, indices, data = (part.numpy() for part in parts_of(tensor).values())
    plain = sp.csr_array((data, indices, indptr), shape=DENSE.shape)
    assert plain.indices.dtype == np.int64 or not np.shares_memory(plain.indices, indices)
    assert np.shares_memory(nd.to_numpy(tensor).indices, indices)
