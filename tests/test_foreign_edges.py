"""Corners between libraries: what is missing, immutable, empty or damaged on the way there and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd

pa = pytest.importorskip("pyarrow", reason="tests pyarrow")
pd = pytest.importorskip("pandas", reason="tests pandas")
pl = pytest.importorskip("polars", reason="tests polars")
sp = pytest.importorskip("scipy.sparse", reason="tests scipy")


def test_rows_of_no_elements_have_a_way_back() -> None:
    rows = pa.array([[], None, []], pa.list_(pa.int64(), 0))
    restored = nd.to_numpy(nd.to_torch(pa.array([[], []], rows.type)), like=rows)
    assert restored.to_pylist() == [[], []]


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.date32(), pa.duration("s")], ids=str)
def test_times_that_became_nat_are_null_again_in_arrow(kind) -> None:
    column = pa.array([1, None], kind)
    restored = nd.to_numpy(nd.to_torch(column, masked="nan"), like=column)
    assert restored.equals(column)


@pytest.mark.parametrize("dtype", [pl.Datetime("ms"), pl.Date, pl.Duration("us")], ids=str)
def test_times_that_became_nat_are_null_again_in_polars(dtype) -> None:
    series = pl.Series("when", [1, None]).cast(dtype)
    restored = nd.to_numpy(nd.to_torch(series, masked="nan"), like=series)
    assert restored.equals(series, null_equal=True)


def test_missing_integers_that_became_nan_are_missing_again_in_pandas() -> None:
    frame = pd.DataFrame({"n": pd.array([1, None, 3], dtype="Int64"), "c": pd.Categorical(["x", None, "y"])})
    restored = nd.to_numpy(nd.to_torch(frame, masked="nan"), like=frame)
    pd.testing.assert_frame_equal(restored, frame)


def test_a_fraction_is_never_cut_off_on_the_way_back_to_integers() -> None:
    with pytest.raises(nd.LossyCastError):
        nd.to_numpy(torch.tensor([1.5, 2.0]), like=pd.Series([1, 2], dtype="Int64"))


def test_columns_that_miss_nothing_are_plain() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [True, False, True]}).convert_dtypes()
    tensors = nd.to_torch(frame)
    assert_same(tensors, {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([True, False, True])})
    assert nd.explain(frame, readonly="share").shares
    pd.testing.assert_frame_equal(nd.to_numpy(tensors, like=frame), frame)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.Index([1, 2], dtype="Int64"),
        lambda: pd.DatetimeIndex(["2020", "2021"], tz="UTC"),
        lambda: pd.PeriodIndex(["2020", "2021"], freq="Y"),
    ],
)
def test_an_index_is_never_written_through_its_array(make) -> None:
    index = make()
    result = nd.to_torch(index.array, masked="split")
    (result.data if isinstance(result, nd.Masked) else result).fill_(9)
    assert index.equals(make())


def test_arrays_without_a_mask_have_no_mask_in_common() -> None:
    assert not nd.shares_memory(np.ma.array([1]), np.ma.array([2]))


def test_damaged_indices_are_not_followed_into_another_layout() -> None:
    matrix = sp.csr_array((2, 2))
    matrix.indptr, matrix.indices = np.array([0, 1, 10**7], np.int32), np.array([0, 1], np.int32)
    matrix.data = np.ones(2)
    with pytest.raises(nd.UnsupportedTypeError, match="indptr ends at 10000000"):
        nd.to_numpy(matrix, like=sp.coo_array((2, 2)))


def test_sharing_that_is_demanded_of_another_library_is_shared_or_refused() -> None:
    tensor = torch.arange(3.0)
    series = nd.to_numpy(tensor, like=pd.Series([0.0], dtype=np.float32), copy=False)
    assert series.to_numpy().ctypes.data == tensor.data_ptr()
    with pytest.raises(nd.CopyRequiredError, match="new memory"):
        nd.to_numpy(tensor > 1, like=pl.Series([True]), copy=False)


@pytest.mark.parametrize("like", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_a_buffer_as_example_gives_an_array_of_its_dtype(like) -> None:
    assert_same(nd.to_numpy(nd.to_torch(like), like=like), np.array([97, 98], np.uint8))


def test_names_of_columns_in_a_checkpoint_are_pythons_own() -> None:
    state = nd.to_checkpoint(pd.DataFrame({pd.Timestamp("2020"): [1.0]})).state
    file = io.BytesIO()
    torch.save(state, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert_same(list(loaded.values()), [torch.tensor([1.0], dtype=torch.float64)])


def test_stack_says_what_to_do_with_sparse_matrices_tables_and_missing_values() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    for source, hint in (
        ([sp.eye_array(2, format="csr")] * 2, "vstack"),
        (frame, "columns side by side"),
        ([pd.Series([1, None], dtype="Int64")], "to_torch(array, masked='nan')"),
    ):
        with pytest.raises(nd.UnsupportedTypeError) as refused:
            nd.stack(source)
        assert hint in str(refused.value.hint)


def test_a_trace_sees_and_forbids_what_collate_copies() -> None:
    batch = [{"x": np.zeros(2)}, {"x": np.ones(2)}]
    with nd.trace() as seen:
        nd.collate(batch)
    assert [(record.function, record.nbytes_copied) for record in seen] == [("collate", 32)]
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError):
        nd.collate(batch)


def test_results_of_numpy_functions_that_other_libraries_made_become_tensors() -> None:
    sparse = nd.torch_io(lambda x: sp.csr_array(x))(torch.eye(2))
    assert sparse.layout is torch.sparse_csr
    assert_same(nd.torch_io(lambda x: pd.Series(x))(torch.ones(2)), torch.ones(2))


def test_a_plan_fits_on_one_line() -> None:
    assert repr(nd.explain(np.zeros(3))) == "<plan: f64[3](numpy) -> float64[3](torch), shared>"
