"""Decorated functions called with the objects of other libraries: the caller's own kind comes back where it fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ndtorch as nd


@nd.numpy_io
def double(x):
    assert isinstance(x, torch.Tensor)
    return x * 2


def test_a_series_comes_back_with_its_index_and_its_name() -> None:
    pd = pytest.importorskip("pandas", reason="tests pandas")
    series = pd.Series([1.0, 2.0, 3.0], index=[5, 6, 7], name="n")
    pd.testing.assert_series_equal(double(series), series * 2)


def test_a_frame_is_a_dict_of_tensors_inside() -> None:
    pd = pytest.importorskip("pandas", reason="tests pandas")
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [3, 4]})

    @nd.numpy_io
    def columns_doubled(columns):
        return {name: column * 2 for name, column in columns.items()}

    result = columns_doubled(frame)
    assert {name: column.tolist() for name, column in result.items()} == {"x": [2.0, 4.0], "y": [6, 8]}


def test_a_data_array_comes_back_with_its_coordinates() -> None:
    xr = pytest.importorskip("xarray", reason="tests xarray")
    array = xr.DataArray(np.ones(3), dims="t", coords={"t": [1, 2, 3]})
    xr.testing.assert_identical(double(array), array * 2)


def test_a_sparse_matrix_is_a_sparse_tensor_inside_and_comes_back_sparse() -> None:
    sp = pytest.importorskip("scipy.sparse", reason="tests scipy")
    matrix = sp.eye_array(3, format="csr")
    result = double(matrix)
    assert result.format == "csr"
    assert (result != matrix * 2).nnz == 0


def test_a_result_that_does_not_fit_the_callers_kind_is_an_array() -> None:
    pd = pytest.importorskip("pandas", reason="tests pandas")
    result = nd.numpy_io(torch.sum)(pd.Series([1.0, 2.0]))
    assert isinstance(result, np.ndarray)
    assert result == 3


def test_a_numpy_function_gets_the_series_itself() -> None:
    pd = pytest.importorskip("pandas", reason="tests pandas")
    series = pd.Series([1.0, 2.0, 3.0])
    rolled = nd.torch_io(lambda values: values.rolling(2).sum())(series)
    pd.testing.assert_series_equal(rolled, series.rolling(2).sum())


def test_the_memory_of_a_series_is_not_written_by_a_function_that_works_in_place() -> None:
    pd = pytest.importorskip("pandas", reason="tests pandas")
    series = pd.Series([1.0, 2.0])
    other = series.copy(deep=False)
    result = nd.numpy_io(lambda x: x.add_(1))(series)
    assert series.tolist() == other.tolist() == [1.0, 2.0]
    assert result.tolist() == [2.0, 3.0]
