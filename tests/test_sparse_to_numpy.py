"""Sparse tensors to scipy.sparse, and the way back by example."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same
from sparse_parts import (
    ALL,
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
    sp,
    tensor_of,
)

import ndtorch as nd

# Torch says once a process that these layouts are beta, to those who build them without ndtorch.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta", "ignore:Sparse invariant checks")


# ---- to NumPy ----


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_tensor_becomes_an_array_of_its_layout_over_its_memory(
    layout: str, dtype: str, index: torch.dtype
) -> None:
    tensor = tensor_of(layout, getattr(torch, dtype), index)
    plan, array = nd.explain(tensor, to="numpy"), nd.to_numpy(tensor, copy=False)
    assert (type(array), array.dtype, array.shape) == (getattr(sp, f"{layout}_array"), dtype, DENSE.shape)
    assert plan.shares
    assert plan.nbytes_copied == 0
    assert_all_share(array, tensor)
    assert_same(array.toarray(), DENSE.astype(dtype))
    if layout != "coo":
        assert array.indices.dtype == array.indptr.dtype == str(index).removeprefix("torch.")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_over_a_tensor_is_one_that_scipy_computes_with(layout: str) -> None:
    array = nd.to_numpy(tensor_of(layout))
    vector = np.arange(4.0)
    assert_same(array @ vector, DENSE @ vector)
    assert_same((array + array).toarray(), DENSE * 2.0)
    assert_same(array.T.toarray(), DENSE.T * 1.0)
    for other in ALL:
        assert_same(array.asformat(other).toarray(), DENSE * 1.0)
    assert_same(pickle.loads(pickle.dumps(array)).toarray(), DENSE * 1.0)
    assert_same(copy.deepcopy(array).toarray(), DENSE * 1.0)


@pytest.mark.parametrize("layout", COMPRESSED)
def test_array_over_a_tensor_out_of_order_knows_that_it_is(layout: str) -> None:
    words = {"layout": TORCH_LAYOUT[layout], "check_invariants": False}
    values = torch.tensor([1.0, 2, 4]).reshape((3, 1, 1) if layout == "bsr" else 3)
    tensor = torch.sparse_compressed_tensor([0, 3, 3], [1, 0, 1], values, (2, 2), **words)
    array = nd.to_numpy(tensor)
    assert not array.has_canonical_format
    expected = np.array([[2.0, 5], [0, 0]], "f4")
    assert_same(array.toarray(), expected.T.copy() if layout == "csc" else expected)
    assert_all_share(array, tensor)


def test_uncoalesced_tensor_keeps_its_duplicates() -> None:
    tensor = torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 0]], [1.0, 2.0, 4.0], (2, 2))
    array = nd.to_numpy(tensor)
    assert array.nnz == 3
    assert_all_share(array, tensor)
    assert_same(array.toarray(), np.array([[0, 3], [4, 0]], "f4"))
    back = nd.to_torch(array, copy=False)  # its coordinates are rows of one matrix
    assert_all_share(back, tensor)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_read_only_where_autograd_could_not_see_a_write(layout: str) -> None:
    tensor = tensor_of(layout).requires_grad_()
    array = nd.to_numpy(tensor)
    assert not array.data.flags.writeable
    assert address_of(array.data) == address_of(parts_of(tensor)["data"])
    assert_same(array.toarray(), DENSE * 1.0)
    assert "autograd could not see a write" in str(nd.explain(tensor, to="numpy"))
    assert nd.to_numpy(tensor, copy=True).data.flags.writeable
    assert tensor.requires_grad
    result = nd.to_numpy((tensor * 2).detach())
    assert result.data.flags.writeable


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lazy", ["conj", "neg"])
def test_lazy_values_are_resolved(layout: str, lazy: str) -> None:
    plain = tensor_of(layout, torch.complex64)
    *indices, data = (parts_of(plain)[k] for k in parts_of(plain) if k != "data"), parts_of(plain)["data"]
    values = (data * 1j).conj() if lazy == "conj" else (data * 1j).conj().imag
    if layout == "coo":
        tensor = torch.sparse_coo_tensor(plain._indices(), values, plain.shape)
    else:
        tensor = torch.sparse_compressed_tensor(*indices[0], values, plain.shape, layout=plain.layout)
    expected = (DENSE * -1j).astype("c8") if lazy == "conj" else (DENSE * -1.0).astype("f4")
    assert_same(dense_of(nd.to_numpy(tensor)) + 0, expected + 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_values_that_scipy_cannot_compute_on_are_refused_until_cast(layout: str, dtype: torch.dtype) -> None:
    tensor = nd.to_torch(matrix(layout), dtype=dtype)
    plan = nd.explain(tensor, to="numpy")
    with pytest.raises(nd.UnsupportedDtypeError, match=r"does not compute on .*Hint: dtype='float32'") as raised:
        nd.to_numpy(tensor)
    assert str(plan.error) == str(raised.value)
    for options in ({"dtype": "float32"}, {"float_dtype": "float32"}):
        array = nd.to_numpy(tensor, **options)
        assert_same(array.toarray(), DENSE.astype("f4"))
    with pytest.raises(nd.UnsupportedDtypeError, match="does not compute on"):
        nd.to_numpy(tensor_of(layout), dtype=dtype)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_half_complex_widens() -> None:
    tensor = torch.sparse_coo_tensor([[0], [1]], torch.tensor([1 + 2j]).to(torch.complex32), (1, 2))
    assert_same(nd.to_numpy(tensor).toarray(), np.array([[0, 1 + 2j]], "c8"))


@pytest.mark.parametrize("dtype", ["M8[s]", "U", ">f8"])
def test_dtypes_that_are_no_plain_numbers_are_refused(dtype: str) -> None:
    tensor = tensor_of("csr", torch.int64)
    if dtype == ">f8":
        assert_same(nd.to_numpy(tensor, dtype=dtype).data, np.array([1, 2, 3, 4], dtype))
        return
    with pytest.raises(nd.UnsupportedDtypeError):
        nd.to_numpy(tensor, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "fact", "hint"),
    [
        (lambda: torch.ones(2, 2, 3).to_sparse(2), "sparse_coo and each of its values is an array", "to_dense"),
        (lambda: torch.ones(2, 2, 3).to_sparse_csr(dense_dim=1), "sparse_csr and each of its values", "to_dense"),
        (lambda: torch.ones(3, 2, 2).to_sparse_csr(), "sparse_csr and it is a batch", "unbind"),
        (lambda: torch.ones(3, 2, 2).to_sparse_bsr((1, 1)), "sparse_bsr and it is a batch", "unbind"),
        (lambda: torch.ones(2, 2).to_sparse_bsc((1, 1)), "its layout is sparse_bsc, which", "to_dense"),
        (lambda: torch.tensor(1.0).to_sparse(), "sparse_coo and it has no dimension", "to_dense"),
        (lambda: torch.empty(2, 2, layout=torch.sparse_csr, device="meta"), "meta tensor", "empty_like"),
    ],
)
def test_tensor_that_scipy_has_no_array_for_is_refused(make: Any, fact: str, hint: str) -> None:
    tensor = make()
    with pytest.raises(nd.UnsupportedTypeError, match=f"{fact}.*Hint: .*{hint}") as raised:
        nd.to_numpy([tensor])
    assert raised.value.path == "[0]"
    assert str(nd.explain(tensor, to="numpy").error) == str(raised.value)


def test_batch_is_converted_matrix_by_matrix_as_the_hint_says() -> None:
    batch = torch.tensor(DENSE).expand(2, 3, 4).to_sparse_csr()
    for array in nd.to_numpy(batch.unbind()):
        assert_same(array.toarray(), DENSE)


def test_fake_sparse_tensor_is_refused() -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.eye(2).to_sparse())
    with pytest.raises(nd.UnsupportedTypeError, match="fake tensor"):
        nd.to_numpy(fake)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference_tensor_is_shared(layout: str) -> None:
    with torch.inference_mode():
        tensor = tensor_of(layout)
        array = nd.to_numpy(tensor)
        assert_same(array.toarray(), DENSE * 1.0)
        assert nd.shares_memory(array, tensor)


def test_subclass_and_parameter_are_tensors_too() -> None:
    parameter = torch.nn.Parameter(tensor_of("csr"))
    assert_same(nd.to_numpy(parameter).toarray(), DENSE * 1.0)


def test_sparse_tensor_to_torch_is_itself() -> None:
    tensor = tensor_of("csr")
    assert nd.to_torch(tensor) is tensor
    assert nd.to_torch(tensor, dtype="float32").dtype == torch.float32


def test_without_scipy_a_sparse_tensor_is_refused_and_the_plan_says_so() -> None:
    code = """
import sys, importlib.util, warnings
sys.modules["scipy"] = None
import torch, ndtorch as nd
tensor = torch.eye(2).to_sparse()
error = nd.explain(tensor, to="numpy").error
try:
    nd.to_numpy(tensor)
except nd.MissingDependencyError as raised:
    assert str(raised) == str(error), (raised, error)
    print(raised)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "pip install scipy" in done.stdout, done.stderr


def test_conversion_does_not_warn_that_torch_calls_a_layout_beta() -> None:
    code = """
import warnings; warnings.simplefilter("error")
import numpy as np, scipy.sparse as sp, ndtorch as nd
for layout in (sp.csr_array, sp.csc_array, sp.bsr_array, sp.coo_array):
    nd.to_numpy(nd.to_torch(layout(np.eye(2))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# ---- scipy.sparse to NumPy ----


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("layout", ALL)
def test_matrix_is_numpy_already_whatever_its_layout(layout: str, kind: str) -> None:
    source = matrix(layout, kind=kind)
    assert nd.to_numpy(source) is source
    assert nd.to_numpy([source], copy=False)[0] is source
    assert nd.explain(source, to="numpy").shares
    for options in ({"copy": True}, {"dtype": "float32"}, {"float_dtype": "float32"}):
        other = nd.to_numpy(source, **options)
        assert type(other) is type(source)
        assert other.dtype == ("f8" if "copy" in options else "f4")
        assert_same(np.asarray(other.toarray()), DENSE.astype(other.dtype))
        assert not nd.shares_memory(other, source) or "copy" not in options
        assert not nd.explain(source, to="numpy", **options).shares
    with pytest.raises(nd.CopyRequiredError):
        nd.to_numpy(source, dtype="float32", copy=False)


def test_matrix_with_unsound_indices_is_still_itself() -> None:
    source = csr([0, 9], [7], [1.0], (1, 2))
    assert nd.to_numpy(source) is source
    assert nd.shares_memory(source, source.data)


# ---- shares_memory ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_memory_compares_part_by_part(layout: str) -> None:
    source = matrix(layout)
    tensor = nd.to_torch(source)
    other = nd.to_torch(source, copy=True)
    assert nd.shares_memory(source, tensor)
    assert nd.shares_memory(tensor, source)
    assert nd.shares_memory(tensor, tensor)
    assert nd.shares_memory(source, source)
    assert nd.shares_memory(source.data, tensor)
    assert nd.shares_memory({"a": [tensor]}, source)
    assert not nd.shares_memory(source, other)
    assert not nd.shares_memory(other, tensor)
    assert not nd.shares_memory(source.copy(), tensor)


def test_shares_memory_knows_every_sparse_tensor_and_dia() -> None:
    for tensor in (
        torch.ones(2, 2, 3).to_sparse(2),
        torch.ones(3, 2, 2).to_sparse_csr(),
        torch.ones(2, 2).to_sparse_bsc((1, 1)),
        torch.eye(2).half().to_sparse(),
        torch.eye(2).to_sparse_csr().requires_grad_(),
    ):
        assert nd.shares_memory(tensor, tensor)
        assert nd.shares_memory(tensor, parts_of(tensor)["data"] if tensor.layout != torch.sparse_bsc else tensor)
        assert not nd.shares_memory(tensor, np.ones(3))
    dia = matrix("dia")
    assert nd.shares_memory(dia, dia.data)
    assert not nd.shares_memory(dia, nd.to_torch(dia))
    assert not nd.shares_memory(torch.empty(2, 2, layout=torch.sparse_csr, device="meta"), np.ones(2))


# ---- like= ----


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ALL)
def test_like_restores_class_layout_and_dtype(layout: str, dtype: str, kind: str) -> None:
    source = matrix(layout, dtype, kind=kind)
    tensor = nd.to_torch(source)
    back = nd.to_numpy(tensor, like=source)
    assert (type(back), back.dtype, back.shape) == (type(source), dtype, source.shape)
    assert_same(np.asarray(back.toarray()), DENSE.astype(dtype))
    if layout in COMPRESSED:
        assert_all_share(back, source)
        assert_all_share(nd.to_numpy(tensor, like=source, copy=False), source)


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_like_of_another_layout_converts(layout: str, target: str) -> None:
    tensor = tensor_of(layout)
    like = matrix(target, "f4", kind="matrix", dense=np.eye(3))
    back = nd.to_numpy(tensor, like=like)
    assert (type(back), back.dtype) == (type(like), np.float32)
    assert_same(np.asarray(back.toarray()), DENSE.astype("f4"))
    if layout != target:
        with pytest.raises(nd.CopyRequiredError, match=f"{layout} becomes {target}"):
            nd.to_numpy(tensor, like=matrix(target), copy=False)


def test_like_keeps_long_indices_in_the_memory_they_are() -> None:
    source = sp.csr_matrix(matrix("csr", kind="matrix"))
    source.indptr, source.indices = source.indptr.astype("i8"), source.indices.astype("i8")
    back = nd.to_numpy(nd.to_torch(source), like=source, copy=False)
    assert type(back) is sp.csr_matrix
    assert_all_share(back, source)


def test_like_keeps_the_size_of_blocks() -> None:
    source = sp.bsr_array(np.kron(np.eye(2), np.ones((2, 3))), blocksize=(2, 3))
    assert nd.to_numpy(nd.to_torch(source.tocsr()), like=source).blocksize == (2, 3)
    odd = nd.to_numpy(nd.to_torch(matrix("csr")), like=source)  # 3 rows are no blocks of 2
    assert_same(odd.toarray(), DENSE * 1.0)


def test_like_follows_casting() -> None:
    tensor = tensor_of("csr") * 1.5
    with pytest.raises(nd.LossyCastError, match="same_kind"):
        nd.to_numpy(tensor, like=matrix("csr", "i4"))
    with pytest.raises(nd.LossyCastError, match="would become"):
        nd.to_numpy(tensor, like=matrix("csr", "i4"), casting="exact")
    assert nd.to_numpy(tensor, like=matrix("csr", "i4"), casting="unsafe").dtype == np.int32
    half = nd.to_torch(matrix("csr"), dtype="bfloat16")
    assert_same(nd.to_numpy(half, like=matrix("csr", "f4")).toarray(), DENSE.astype("f4"))


def test_dense_result_becomes_sparse_as_its_example_was() -> None:
    back = nd.to_numpy(torch.tensor(DENSE).float(), like=matrix("csc", "f4"))
    assert type(back) is sp.csc_array
    assert_same(back.toarray(), DENSE.astype("f4"))
    with pytest.raises(nd.CopyRequiredError, match="dense becomes csc"):
        nd.to_numpy(torch.ones(2, 2), like=matrix("csc", "f4"), copy=False)


def test_like_converts_matrices_to_arrays_too() -> None:
    for layout in ALL:
        source, like = matrix(layout, kind="matrix"), matrix(layout)
        back = nd.to_numpy(source, like=like)
        assert type(back) is type(like)
        assert_same(back.toarray(), DENSE * 1.0)
        if layout in LAYOUTS:
            assert_all_share(back, source)


def test_like_that_cannot_hold_the_source_is_an_error() -> None:
    cube = torch.ones(2, 2, 2).to_sparse()
    for like in (
        matrix("csr"),
        matrix("csr", kind="matrix"),
        matrix("dia"),
        matrix("lil"),
        matrix("coo", kind="matrix"),
    ):
        with pytest.raises(nd.ShapeMismatchError):
            nd.to_numpy(cube.double(), like=like)
    assert_same(nd.to_numpy(cube.double(), like=matrix("coo")).toarray(), np.ones((2, 2, 2)))
    with pytest.raises(nd.NdtorchError):
        nd.to_numpy({"a": torch.ones(2)}, like=matrix("csr"))


def test_source_with_an_example_that_is_a_sparse_tensor_becomes_an_array() -> None:
    tensor = tensor_of("csr", torch.int64)
    assert_same(nd.to_numpy(tensor, like=torch.ones(2)).toarray(), DENSE.astype("f4"))
    assert_same(nd.to_numpy(tensor, like=tensor).toarray(), DENSE)
