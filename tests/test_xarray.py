"""xarray: labelled arrays to tensors and back, in memory, on disk and in chunks. The oracle is the array inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares

import ndtorch as nd

xr = pytest.importorskip("xarray", reason="xarray is not installed")
pd = pytest.importorskip("pandas", reason="pandas is not installed")

from ndtorch.foreign import library_of  # noqa: E402


def grid(dtype: str = "float64") -> Any:
    """Two dimensions with coordinates of every kind."""
    return xr.DataArray(
        np.arange(6).reshape(2, 3).astype(dtype),
        dims=("x", "y"),
        coords={"x": [10, 20], "y": ["a", "b", "c"], "height": ("x", [4.0, 5.0]), "run": 3},
        attrs={"unit": "m"},
        name="grid",
    )


def dataset() -> Any:
    return xr.Dataset(
        {"t": ("time", np.array(["2020", "NaT"], "M8[s]")), "g": grid(), "n": ((), 5), "b": ("time", [True, False])},
        coords={"time": pd.date_range("2020", periods=2)},
        attrs={"source": "made up"},
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "uint8", "bool", "complex64", "datetime64[ns]"])
def test_array_in_memory_is_shared(dtype: str) -> None:
    source = grid(dtype)
    for value in (source, source.variable):
        tensor = nd.to_torch(value, copy=False)
        assert nd.explain(value).shares
        assert_same(nd.to_numpy(tensor, dtype=dtype), source.values)
        assert_shares(tensor, source.values)
    assert_same(nd.to_numpy(source), source.values)
    assert_shares(nd.to_numpy(source), source.values)


def test_views_keep_their_strides_or_are_copied() -> None:
    turned = grid().transpose("y", "x")[:, ::1]
    assert nd.to_torch(turned).stride() == (1, 3)
    assert_shares(nd.to_torch(turned), turned.values)
    flipped = grid().isel(x=slice(None, None, -1))
    assert "negative stride" in nd.explain(flipped).reason
    assert_same(nd.to_torch(flipped), torch.tensor([[3.0, 4, 5], [0, 1, 2]], dtype=torch.float64))


def test_read_only_values_are_copied_unless_sharing_is_asked_for() -> None:
    values = np.arange(3)
    values.flags.writeable = False
    source = xr.DataArray(values)
    assert nd.explain(source).reason == "it is read-only"
    assert_independent(nd.to_torch(source), values)
    assert nd.to_torch(source, readonly="share").data_ptr() == values.__array_interface__["data"][0]


def test_index_coordinates_are_the_memory_of_pandas() -> None:
    source = grid()
    assert nd.explain(source.x).reason == "it is read-only"
    assert_same(nd.to_torch(source.x), torch.tensor([10, 20]))
    assert_same(nd.to_torch(source.x.variable), torch.tensor([10, 20]))
    assert_same(nd.to_torch(source.height), torch.tensor([4.0, 5.0], dtype=torch.float64))
    assert_same(nd.to_torch(source.y), torch.tensor([[97], [98], [99]], dtype=torch.int32))
    assert_same(nd.to_torch(source.run), torch.tensor(3))
    stacked = xr.DataArray(np.zeros((2, 1)), coords={"a": [1, 2], "b": [0.5]}, dims=("a", "b")).stack(k=("a", "b"))
    levels = nd.to_torch(stacked.k)
    assert_same(levels, {"a": torch.tensor([1, 2]), "b": torch.tensor([0.5, 0.5], dtype=torch.float64)})


def test_dataset_becomes_a_dict_of_its_data_variables() -> None:
    source = dataset()
    result = nd.to_torch(source)
    assert list(result) == ["t", "g", "n", "b"]
    assert_same(result["t"], torch.tensor([1577836800, -(2**63)]))
    assert_same(result["g"], torch.arange(6, dtype=torch.float64).reshape(2, 3))
    assert_same(result["n"], torch.tensor(5))
    assert nd.explain(source).shares
    assert nd.explain(source).leaves["['g']"].shares
    for name, tensor in result.items():
        assert tensor.data_ptr() == source[name].values.__array_interface__["data"][0]
    assert nd.to_torch(xr.Dataset()) == {}


def test_tree_becomes_nested_dicts() -> None:
    tree = xr.DataTree.from_dict({"/": xr.Dataset({"r": ("x", [1, 2])}), "/sub": dataset(), "/sub/deep": xr.Dataset()})
    result = nd.to_torch(tree)
    assert_same(result["r"], torch.tensor([1, 2]))
    assert_same(result["sub"]["n"], torch.tensor(5))
    assert result["sub"]["deep"] == {}
    assert nd.to_numpy(result, like=tree).identical(tree)


def test_values_that_pandas_holds_are_taken_from_it() -> None:
    frame = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "c": pd.Categorical(["x", "y"])})
    source = frame.to_xarray()
    with pytest.raises(nd.UnsupportedTypeError, match="1 of its 2 values is missing") as caught:
        nd.to_torch(source)
    assert caught.value.path == "['n']"
    result = nd.to_torch(source, masked="split")
    assert_same(result["n"].mask, torch.tensor([False, True]))
    assert_same(result["c"], torch.tensor([0, 1], dtype=torch.int8))
    assert nd.to_numpy(result, like=source).identical(source)
    assert_same(nd.to_torch(source.n, masked="nan"), torch.tensor([1.0, float("nan")], dtype=torch.float64))


def test_objects_are_read_and_text_becomes_code_points() -> None:
    assert_same(nd.to_torch(xr.DataArray(np.array([1, 2], object))), torch.tensor([1, 2]))
    assert_same(nd.to_torch(xr.DataArray(np.array(["é"]))), torch.tensor([[233]], dtype=torch.int32))
    with pytest.raises(nd.UnsupportedTypeError, match="the element at index 0 is a str"):
        nd.to_torch(xr.DataArray(np.array(["a"], object)))


def test_values_held_by_an_unknown_library_are_refused() -> None:
    class Held(np.lib.mixins.NDArrayOperatorsMixin):
        """A duck array that hands out nothing."""

        shape, ndim, dtype = (2,), 1, np.dtype(float)

        def __array_function__(self, *args: Any) -> Any:
            return NotImplemented

        def __array_ufunc__(self, *args: Any, **words: Any) -> Any:
            return NotImplemented

    source = xr.Variable("x", Held())
    with pytest.raises(nd.UnsupportedTypeError, match="its values are held by a Held"):
        nd.to_torch(source)


# ---- on disk, in chunks ----


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    pytest.importorskip("h5netcdf", reason="h5netcdf, which reads the file, is not installed")
    path = tmp_path / "grid.nc"
    xr.Dataset({"grid": grid().drop_vars("y"), "late": ("x", np.array(["2020", "2021"], "M8[ns]"))}).to_netcdf(
        path, engine="h5netcdf"
    )
    return path


def opened(path: Path, **words: Any) -> Any:
    return xr.open_dataset(path, engine="h5netcdf", **words)


def test_lazy_values_are_read_when_they_are_converted_and_not_before(stored: Path) -> None:
    with opened(stored) as source:
        plan = nd.explain(source)
        assert not source.grid.variable._in_memory
        assert plan.nbytes_copied == 48 + 16
        assert "its values are not in memory until xarray loads them" in plan.reason
        result = nd.to_torch(source, float_dtype="float32")
        assert_same(result["grid"], torch.arange(6, dtype=torch.float32).reshape(2, 3))
        assert_same(result["late"], torch.tensor([1577836800, 1609459200]) * 10**9)
        part = opened(stored).grid.isel(x=1)
        first = nd.to_torch(part)
        assert_same(first, torch.tensor([3.0, 4, 5], dtype=torch.float64))
        assert_independent(first, part.values)  # which xarray keeps, once it has read them
        with pytest.raises(nd.CopyRequiredError, match="not in memory until xarray loads them"):
            nd.to_torch(opened(stored).grid, copy=False)
        assert nd.to_numpy(result, like=source).identical(source.load())
        assert nd.explain(source.grid).shares


def test_chunks_of_dask_are_computed_into_one_tensor(stored: Path) -> None:
    pytest.importorskip("dask.array", reason="dask is not installed")
    with opened(stored, chunks={"x": 1}) as source:
        assert nd.explain(source.grid).reason == "its values are chunks that dask has yet to compute"
        doubled = source.grid * 2
        tensor = nd.to_torch(doubled)
        assert_same(tensor, torch.arange(0, 12, 2, dtype=torch.float64).reshape(2, 3))
        assert_same(nd.to_torch(source, dtype=None)["late"], torch.tensor([1577836800, 1609459200]) * 10**9)
        assert nd.to_numpy(tensor, like=doubled).identical(doubled.compute())
        assert_same(nd.to_numpy(doubled), doubled.values)
    values = np.arange(3.0)
    one = xr.DataArray(values).chunk()
    assert_independent(nd.to_torch(one), values)
    assert_independent(nd.to_numpy(one), values)


def test_failure_while_reading_is_an_error_of_ours(stored: Path) -> None:
    pytest.importorskip("dask.array", reason="dask is not installed")

    def fail(block: np.ndarray) -> np.ndarray:
        raise ValueError("the disk is gone")

    broken = xr.DataArray(np.zeros(3)).chunk()
    broken = broken.copy(data=broken.data.map_blocks(fail, dtype=float, meta=np.empty(0)))
    with pytest.raises(nd.NdtorchError, match="the disk is gone") as caught:
        nd.to_torch({"data": broken})
    assert caught.value.path == "['data']"


def test_objects_that_are_not_loaded_are_refused() -> None:
    pytest.importorskip("dask.array", reason="dask is not installed")
    lazy = xr.DataArray(np.array([1, 2], object)).chunk()
    with pytest.raises(nd.UnsupportedTypeError, match="only loading it tells") as caught:
        nd.to_torch(lazy)
    assert "source.load()" in caught.value.hint
    assert_same(nd.to_torch(lazy.load()), torch.tensor([1, 2]))


# ---- like= ----


SOURCES: dict[str, Callable[[], Any]] = {
    "grid": grid,
    "integers": lambda: grid("int8"),
    "times": lambda: grid("datetime64[ns]"),
    "turned": lambda: grid().transpose(),
    "variable": lambda: grid().variable,
    "coordinate": lambda: grid().x,
    "text": lambda: grid().y.drop_vars("y"),
    "number": lambda: grid().run,
    "objects": lambda: xr.DataArray(np.array([1, 2], object)),
    "stacked": lambda: grid().stack(k=("x", "y")),
    "empty": lambda: grid().isel(x=slice(0)),
    "dataset": dataset,
    "no variables": lambda: dataset()[[]],
}


@pytest.mark.parametrize("name", SOURCES)
def test_like_restores_coordinates_attributes_and_names(name: str) -> None:
    source = SOURCES[name]()
    for back in (
        nd.to_numpy(nd.to_torch(source), like=source),
        nd.to_numpy(nd.to_numpy(source), like=source),
        nd.to_numpy(source, like=source),
    ):
        assert type(back) is type(source)
        assert back.identical(source)


def test_like_shares_the_memory_of_the_tensor() -> None:
    tensor = torch.zeros(2, 3, dtype=torch.float64)
    assert_shares(nd.to_numpy(tensor, like=grid()).values, tensor)
    assert_shares(nd.to_numpy({"g": tensor}, like=grid().to_dataset(name="g")).g.values, tensor)
    assert_independent(nd.to_numpy(tensor, like=grid(), copy=True).values, tensor)


def test_dimension_of_another_size_loses_its_coordinates() -> None:
    back = nd.to_numpy(torch.zeros(5, 3), like=grid("float32"))
    assert list(back.coords) == ["y", "run"]
    assert (back.dims, back.shape, back.name, back.attrs) == (("x", "y"), (5, 3), "grid", {"unit": "m"})
    assert nd.to_numpy(torch.zeros(4), like=grid("float32").stack(k=("x", "y"))).dims == ("k",)
    whole = nd.to_numpy(
        {"t": torch.zeros(3, dtype=torch.int64), "g": torch.zeros(2, 3), "n": 1, "b": [True] * 3}, like=dataset()
    )
    assert sorted(whole.coords) == ["height", "run", "x", "y"]
    assert whole.t.dtype == "M8[s]"
    assert nd.to_numpy(torch.zeros(1, 3), like=grid("float32").variable).shape == (1, 3)


@pytest.mark.parametrize(
    ("source", "like", "path", "match"),
    [
        (torch.zeros(6), grid(), "", r"like= has the dimensions \(x, y\); expected 2 of them, got 1"),
        ({"a": torch.zeros(2)}, grid(), "", "got a dict"),
        ({"g": torch.zeros(2)}, grid().to_dataset(name="g"), "['g']", "expected 2 of them"),
        ({"h": torch.zeros(2)}, grid().to_dataset(name="g"), "", r"other variables; expected \['g'\], got \['h'\]"),
        (torch.zeros(2), grid().to_dataset(name="g"), "", "other variables"),
        (
            {"a": torch.zeros(2), "b": torch.zeros(3)},
            xr.Dataset({"a": ("x", [1.0]), "b": ("x", [1.0])}),
            "['b']",
            "the dimension 'x' has another size",
        ),
        (torch.zeros(2), xr.DataTree(grid().to_dataset(name="g")), "", "a DataTree of other variables"),
    ],
)
def test_like_that_does_not_fit_is_an_error(source: Any, like: Any, path: str, match: str) -> None:
    with pytest.raises(nd.ShapeMismatchError, match=match) as caught:
        nd.to_numpy(source, like=like)
    assert caught.value.path == path


def test_labelled_arrays_inside_structures_are_converted() -> None:
    tree = {"field": grid(), "all": [dataset()]}
    result = nd.to_torch(tree, float_dtype="float32")
    assert result["field"].dtype == result["all"][0]["g"].dtype == torch.float32
    back = nd.to_numpy(result, like=tree)
    assert back["field"].identical(grid())
    assert back["all"][0].identical(dataset())


def test_wrap_gives_an_array_the_labels_of_an_example_of_its_shape() -> None:
    wrap = library_of(grid()).wrap
    assert wrap(np.ones((2, 3)), grid()).identical(grid().copy(data=np.ones((2, 3))))
    odd = np.ones(3)
    assert wrap(odd, grid()) is odd
    assert wrap(odd, dataset()) is odd
