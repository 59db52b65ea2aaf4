"""HDF5 through h5py: datasets are read once, groups become tables, and what has no numbers is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding

import ndtorch as nd

h5py: Any = pytest.importorskip("h5py", reason="h5py is not installed")

DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", ">i2", ">f8", ">u4"]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    with h5py.File(tmp_path / "data.h5", "w") as opened:
        yield opened


def some(dtype: Any, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    values = np.random.default_rng(2).integers(0, 100, shape)
    return np.asarray(values % 2 if dtype == "?" else values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 4), (), (0, 3), (1, 2, 3)])
def test_dataset_of_every_dtype_comes_out_with_its_values(file: Any, dtype: str, shape: tuple[int, ...]) -> None:
    values = some(dtype, shape)
    dataset = file.create_dataset("x", data=values)
    assert_same(nd.to_torch(dataset), tensor_holding(values))
    assert_same(nd.to_numpy(dataset), values)
    assert_same(nd.to_numpy(nd.to_torch(dataset), like=dataset), values)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({}, "its values are in a file"),
        ({"chunks": (2, 2)}, "its values are chunks of a file"),
        ({"compression": "gzip"}, "its values are compressed chunks of a file"),
        ({"shuffle": True, "chunks": (3, 4)}, "its values are compressed chunks of a file"),
    ],
)
def test_plan_says_where_the_values_are(file: Any, words: dict[str, Any], reason: str) -> None:
    values = some("f4")
    dataset = file.create_dataset("x", data=values, **words)
    plan = nd.explain(dataset)
    assert (plan.reason, plan.nbytes_copied, plan.dtype, plan.shape) == (reason, 80, "float32", (5, 4))
    assert_same(nd.to_torch(dataset), tensor_holding(values))
    with pytest.raises(nd.CopyRequiredError, match=reason):
        nd.to_torch(dataset, copy=False)


def test_dataset_is_read_straight_into_the_tensor(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = file.create_dataset("x", data=some("f4"))
    seen = []
    monkeypatch.setattr(type(dataset), "__getitem__", None)
    whole = type(dataset).read_direct
    monkeypatch.setattr(type(dataset), "read_direct", lambda self, out: (seen.append(out), whole(self, out))[1])
    tensor = nd.to_torch(dataset)
    assert tensor.data_ptr() == seen[0].__array_interface__["data"][0]


def test_explain_reads_no_values(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = file.create_dataset("x", data=np.ones(3, [("a", "f4"), ("b", "i8")]))
    monkeypatch.setattr(type(dataset), "__getitem__", None)
    monkeypatch.setattr(type(dataset), "read_direct", None)
    assert nd.explain(dataset).nbytes_copied == 36
    assert nd.explain({"group": file}).leaves["['group']"].nbytes_copied == 36


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float32"}, {"float_dtype": "bfloat16"}, {"copy": True}, {"casting": "exact", "dtype": "int16"}],
)
def test_options_reach_the_values(file: Any, options: dict[str, Any]) -> None:
    values = some("f8")
    dataset = file.create_dataset("x", data=values)
    name = options.get("dtype", options.get("float_dtype", "float64"))
    assert_same(nd.to_torch(dataset, **options), torch.from_numpy(values).to(getattr(torch, name)))


def test_cast_that_loses_values_is_an_error(file: Any) -> None:
    dataset = file.create_dataset("x", data=np.array([0.5]))
    with pytest.raises(nd.LossyCastError):
        nd.to_torch({"x": dataset}, dtype="int64")


# --- compound and other dtypes


def compound() -> np.ndarray:
    dtype = [("x", "f4"), ("y", ">i8", (2,)), ("t", "S3"), ("b", "?"), ("in", [("p", "u1"), ("q", "f8")])]
    values = np.zeros(4, dtype)
    values["x"], values["y"], values["t"], values["b"] = [1, 2, 3, 4], [[1, -2]] * 4, b"ab", [True, False] * 2
    values["in"]["q"] = 0.5
    return values


def test_compound_dataset_becomes_a_dict_and_is_read_once(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = compound()
    dataset = file.create_dataset("x", data=values)
    count = []
    whole = type(dataset).read_direct
    monkeypatch.setattr(type(dataset), "read_direct", lambda self, out: (count.append(out), whole(self, out))[1])
    item = type(dataset).__getitem__
    monkeypatch.setattr(type(dataset), "__getitem__", lambda self, key: (count.append(key), item(self, key))[1])
    assert_same(nd.to_torch(dataset), nd.to_torch(values, copy=True))
    assert len(count) == 1
    assert_same(nd.to_numpy(dataset), values)


def test_compound_dataset_is_the_example_for_a_structured_array(file: Any) -> None:
    values = compound()
    dataset = file.create_dataset("x", data=values)
    assert_same(nd.to_numpy(nd.to_torch(dataset), like=dataset), values)
    scalar = file.create_dataset("scalar", data=values[0])
    assert_same(nd.to_torch(scalar), nd.to_torch(np.array(values[0]), copy=True))


def test_plan_of_a_compound_dataset_names_its_fields(file: Any) -> None:
    plan = nd.explain(file.create_dataset("x", data=compound()))
    assert list(plan.leaves) == ["['x']", "['y']", "['t']", "['b']", "['in']"]
    assert plan.leaves["['x']"].reason == "its values are in a file"
    assert not plan.shares


def test_array_as_element_becomes_dimensions(file: Any) -> None:
    dataset = file.create_dataset("x", shape=(4,), dtype=np.dtype(("f4", (3,))))
    dataset[...] = np.arange(12).reshape(4, 3)
    assert_same(nd.to_torch(dataset), torch.arange(12, dtype=torch.float32).reshape(4, 3))
    assert nd.explain(dataset).shape == (4, 3)
    assert_same(nd.to_numpy(nd.to_torch(dataset), like=dataset), np.arange(12, dtype="f4").reshape(4, 3))


def test_enum_comes_out_as_codes_with_a_note(file: Any) -> None:
    dataset = file.create_dataset("x", data=[2, 1], dtype=h5py.enum_dtype({"a": 1, "b": 2}, "i2"))
    assert_same(nd.to_torch(dataset), torch.tensor([2, 1], dtype=torch.int16))
    assert "check_enum_dtype" in nd.explain(dataset).notes[0]


def test_fixed_bytes_come_out_as_characters_and_back(file: Any) -> None:
    values = np.array([b"ab", b"c"], "S3")
    dataset = file.create_dataset("x", data=values)
    assert_same(nd.to_torch(dataset), torch.tensor([[97, 98, 0], [99, 0, 0]], dtype=torch.uint8))
    assert_same(nd.to_numpy(nd.to_torch(dataset), like=dataset), values)


def test_times_come_out_as_integers_and_back(file: Any) -> None:
    values = np.array(["2024-02-29", "NaT"], "M8[D]")
    dataset = file.create_dataset("x", data=values.astype(h5py.opaque_dtype(values.dtype)))
    assert_same(nd.to_torch(dataset), torch.from_numpy(values.view("i8")))
    assert_same(nd.to_numpy(nd.to_torch(dataset), like=dataset), values)


def test_long_double_is_refused_without_a_dtype(file: Any) -> None:
    dataset = file.create_dataset("x", data=np.ones(3, np.longdouble))
    with pytest.raises(nd.UnsupportedDtypeError, match="torch has no"):
        nd.to_torch(dataset)
    assert_same(nd.to_torch(dataset, dtype="float64", casting="exact"), torch.ones(3, dtype=torch.float64))


def test_arrays_of_varying_length_are_read_as_objects(file: Any) -> None:
    dataset = file.create_dataset("x", shape=(2,), dtype=h5py.vlen_dtype("i4"))
    dataset[0], dataset[1] = [1, 2], [3, 4]
    assert_same(nd.to_torch(dataset), torch.tensor([[1, 2], [3, 4]], dtype=torch.int32))
    dataset[1] = [3]
    with pytest.raises(nd.ShapeMismatchError, match="the one at index 1 has another shape"):
        nd.to_torch(dataset)
    assert_same(nd.to_torch(list(nd.to_numpy(dataset)))[1], torch.tensor([3], dtype=torch.int32))


# --- what is refused


def refused(file: Any, name: str) -> Any:
    if name == "text":
        return file.create_dataset("x", data=["a", "bb"])
    if name == "reference":
        return file.create_dataset("x", shape=(1,), dtype=h5py.ref_dtype)
    if name == "null":
        return file.create_dataset("x", data=h5py.Empty("f4"))
    if name == "opaque":
        return file.create_dataset("x", data=np.zeros(2, "V5"))
    if name == "bfloat16":
        return file.create_dataset("x", data=np.ones(2, ml_dtypes.bfloat16))
    return file.create_dataset("x", shape=(2,), dtype=[("n", "f4"), ("t", h5py.string_dtype())])


@pytest.mark.parametrize(
    ("name", "fact", "hint"),
    [
        ("text", "text of varying length", "dataset.asstr()"),
        ("reference", "references are no numbers", "file[reference]"),
        ("null", "null dataspace", "shape (0,)"),
        ("opaque", "no meaning as numbers", "view(dtype)"),
        ("bfloat16", "no meaning as numbers", ".view(ml_dtypes.bfloat16)"),
        ("field", "in its field 't' text of varying length", "dataset.fields"),
    ],
)
def test_what_holds_no_numbers_is_refused_with_the_call_that_helps(file: Any, name: str, fact: str, hint: str) -> None:
    dataset = refused(file, name)
    for convert in (nd.to_torch, lambda x: nd.to_torch({"in": x})):
        with pytest.raises(nd.UnsupportedTypeError) as caught:
            convert(dataset)
        assert fact in caught.value.fact
        assert hint in caught.value.hint
    assert fact in nd.explain(dataset).reason


def test_hint_for_bfloat16_as_void_works(file: Any) -> None:
    dataset = refused(file, "bfloat16")
    assert_same(nd.to_torch(dataset[()].view(ml_dtypes.bfloat16)), torch.ones(2, dtype=torch.bfloat16))


def test_hint_for_text_works(file: Any) -> None:
    assert_same(nd.to_torch(refused(file, "text").asstr()[()].astype("U")), torch.tensor([[97, 0], [98, 98]]).int())


def test_closed_file_is_refused(file: Any) -> None:
    dataset, group = file.create_dataset("g/x", data=[1]), file["g"]
    file.close()
    for source in (dataset, group, file):
        with pytest.raises(nd.UnsupportedTypeError, match="its file is closed"):
            nd.to_torch(source)
        with pytest.raises(nd.NdtorchError):
            nd.to_numpy(torch.zeros(1), like=source)


def test_damaged_chunk_is_an_error_and_not_garbage(file: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, 1000)
    dataset = file.create_dataset("x", data=values, chunks=(1000,), fletcher32=True)
    place = dataset.id.get_chunk_info(0)
    file.close()
    raw = bytearray((tmp_path / "data.h5").read_bytes())
    raw[place.byte_offset + 5] ^= 255
    (tmp_path / "data.h5").write_bytes(raw)
    with h5py.File(tmp_path / "data.h5") as damaged, pytest.raises(nd.NdtorchError, match="cannot read"):
        nd.to_torch(damaged["x"])


def test_dataset_closed_between_plan_and_read_is_an_error(file: Any) -> None:
    from ndtorch._act import carry_out
    from ndtorch._options import Options
    from ndtorch._plan import plan
    from ndtorch._spec import describe
    from ndtorch.foreign import recognise

    taken = recognise(file.create_dataset("x", data=[1.0]))
    planned = plan(describe(taken), Options(to="torch"))
    file.close()
    with pytest.raises(nd.NdtorchError, match="cannot read"):
        carry_out(planned, taken)


def test_resized_between_plan_and_read_is_an_error(file: Any) -> None:
    from ndtorch._act import carry_out
    from ndtorch._options import Options
    from ndtorch._plan import plan
    from ndtorch._spec import describe
    from ndtorch.foreign import recognise

    dataset = file.create_dataset("x", data=[1.0, 2.0], maxshape=(None,))
    taken = recognise(dataset)
    planned = plan(describe(taken), Options(to="torch"))
    dataset.resize((5,))
    with pytest.raises(nd.NdtorchError):
        carry_out(planned, taken)


def test_virtual_dataset_whose_file_is_gone_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "part.h5", "w") as part:
        part["x"] = np.arange(3.0)
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource("part.h5", "x", shape=(3,))
    with h5py.File(tmp_path / "whole.h5", "w") as whole:
        whole.create_virtual_dataset("x", layout, fillvalue=-1)
    with h5py.File(tmp_path / "whole.h5") as whole:
        assert nd.explain(whole["x"]).reason == "its values are in other datasets"
        assert_same(nd.to_torch(whole["x"]), torch.arange(3, dtype=torch.float64))
    (tmp_path / "part.h5").unlink()
    with h5py.File(tmp_path / "whole.h5") as whole:
        assert whole["x"][0] == -1, "the trap: HDF5 says nothing"
        with pytest.raises(nd.FormatError, match=r"'part\.h5', which is missing"):
            nd.to_torch(whole)


def test_external_file_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    raw = tmp_path / "raw.bin"
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", shape=(4,), dtype="f8", external=[(str(raw), 0, 32)])
        dataset[...] = [1, 2, 3, 4]
    with h5py.File(tmp_path / "x.h5") as file:
        assert_same(nd.to_torch(file["x"]), torch.arange(1, 5, dtype=torch.float64))
    raw.write_bytes(raw.read_bytes()[:16])
    with h5py.File(tmp_path / "x.h5") as file, pytest.raises(nd.FormatError, match="missing or too short"):
        nd.to_torch(file["x"])


# --- groups


def test_file_becomes_a_dict_of_its_members(file: Any) -> None:
    file["x"] = np.arange(3)
    file["deep/er/y"] = np.ones((2, 2), "f4")
    file["type"] = np.dtype("f4")
    file.create_group("empty")
    expected = {"deep": {"er": {"y": torch.ones(2, 2)}}, "empty": {}, "x": torch.arange(3)}
    assert_same(nd.to_torch(file), expected)
    assert_same(nd.to_torch(file["deep"]), expected["deep"])
    back = nd.to_numpy(nd.to_torch(file), like=file)
    assert_same(back, {"deep": {"er": {"y": np.ones((2, 2), "f4")}}, "empty": {}, "x": np.arange(3)})


def test_float_dtype_reaches_the_members_and_leaves_labels_alone(file: Any) -> None:
    file["x"], file["y"] = np.ones(2), np.arange(2)
    result = nd.to_torch(file, float_dtype="float32")
    assert (result["x"].dtype, result["y"].dtype) == (torch.float32, torch.int64)


def test_member_that_is_refused_is_named_by_its_path(file: Any) -> None:
    file["a/b"] = "text"
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.to_torch({"data": file})
    assert caught.value.path == "['data']['a']['b']"


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_group_that_contains_itself_is_refused(file: Any, name: str) -> None:
    group = file.create_group("g/h")
    group["back"] = file["g"] if name == "hard" else h5py.SoftLink("/g")
    with pytest.raises(nd.UnsupportedTypeError, match="which it lies in") as caught:
        nd.to_torch(file)
    assert caught.value.path == "['g']['h']['back']"


def test_group_with_more_paths_than_memory_is_refused(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndtorch.foreign.h5py.MAX_MEMBERS", 100)
    inner = file.create_group("bottom")
    for level in range(20):
        outer = file.create_group(f"level{level}")
        outer["left"], outer["right"] = inner, inner
        inner = outer
    with pytest.raises(nd.UnsupportedTypeError, match="more than 100 members"):
        nd.to_torch(inner)


def test_deeply_nested_groups_do_not_crash(file: Any) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")
    with pytest.raises(nd.UnsupportedTypeError):
        nd.to_torch(file)


def test_same_dataset_by_two_links_is_converted_twice(file: Any) -> None:
    file["x"] = np.arange(3)
    file["same"] = file["x"]
    file["latest"] = h5py.SoftLink("/x")
    assert_same(nd.to_torch(file), dict.fromkeys(["latest", "same", "x"], torch.arange(3)))


@pytest.mark.parametrize("link", [h5py.SoftLink("/nowhere"), h5py.ExternalLink("none.h5", "/x")])
def test_link_that_leads_nowhere_is_refused(file: Any, link: Any) -> None:
    file["dangling"] = link
    with pytest.raises(nd.UnsupportedTypeError, match="where nothing is"):
        nd.to_torch(file)


def test_example_with_other_members_is_an_error_that_names_them(file: Any) -> None:
    file["x"] = np.arange(3)
    with pytest.raises(nd.ShapeMismatchError, match="other members") as caught:
        nd.to_numpy({"y": torch.zeros(3)}, like=file)
    assert (caught.value.expected, caught.value.got) == (["x"], ["y"])
    with pytest.raises(nd.ShapeMismatchError):
        nd.to_numpy(torch.zeros(3), like=file)


def test_shares_memory_knows_that_a_dataset_has_none(file: Any) -> None:
    dataset = file.create_dataset("x", data=[1.0])
    assert not nd.shares_memory(dataset, nd.to_torch(dataset))
