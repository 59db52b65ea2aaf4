"""`write` and `convert_file`: structures become names, casts happen in the stream, and nothing is dropped unsaid."""

from __future__ import annotations

import os
import warnings
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from comparison import assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import message, names_in, put
from strategies import filled, pitched

import ndtorch as nd
from ndtorch.files import Format, open_file, output

ARRAY = np.arange(12.0).reshape(3, 4)

# --- structures and names


@dataclass
class Sample:
    image: Any
    label: Any


Pair = namedtuple("Pair", "first second")

STRUCTURES = {
    "dict": ({"a": {"b": ARRAY}, "c": ARRAY}, ["a/b", "c"]),
    "list": ([ARRAY, {"x": ARRAY}], ["0", "1/x"]),
    "tuple": ((ARRAY, ARRAY), ["0", "1"]),
    "named tuple": ({"p": Pair(ARRAY, ARRAY)}, ["p/first", "p/second"]),
    "dataclass": (Sample(ARRAY, 3), ["image", "label"]),
    "integers as keys": ({0: ARRAY, -1: ARRAY}, ["-1", "0"]),
    "numbers": ({"a": [1, 2.5], "b": [[1, 2], [3, 4]], "c": 3, "d": True}, ["a", "b", "c", "d"]),
    "NumPy's numbers": ([np.float32(1), np.int8(2)], ["f"]),
    "one array": (ARRAY, ["f"]),
    "one tensor": (torch.ones(2), ["f"]),
    "one number": (3, ["f"]),
    "a module's weights": (torch.nn.Linear(2, 3).state_dict(), ["bias", "weight"]),
    "nothing": ({}, []),
    "empty parts": ({"a": [], "b": {}, "c": ARRAY}, ["c"]),
    "a name with a slash": ({"a/b": ARRAY}, ["a/b"]),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_become_names(kind, tmp_path):
    tree, names = STRUCTURES[kind]
    written = nd.write(tmp_path / "f.safetensors", tree)
    assert sorted(one.name for one in written) == sorted(nd.read(tmp_path / "f.safetensors")) == names


def test_numbers_are_arrays(tmp_path):
    nd.write(tmp_path / "f.safetensors", {"a": [1, 2.5], "b": [[1, 2], [3, 4]], "c": 3, "d": True})
    back = nd.read(tmp_path / "f.safetensors", to="numpy")
    assert_same(back["a"][...], np.array([1, 2.5]))
    assert_same(back["b"][...], np.array([[1, 2], [3, 4]]))
    assert_same(back["c"][...], np.array(3))
    assert_same(back["d"][...], np.array(True))


def test_a_frame_becomes_an_array_for_each_column(tmp_path):
    frame = pd.DataFrame({"x": [1.5, 2], "n": [1, 2]})
    nd.write(tmp_path / "f.safetensors", frame)
    back = nd.read(tmp_path / "f.safetensors", to="numpy")
    assert sorted(back) == ["n", "x"]
    assert_same(back["x"][...], np.array([1.5, 2]))
    nd.write(tmp_path / "g.safetensors", {"table": frame, "w": ARRAY})
    assert sorted(nd.read(tmp_path / "g.safetensors")) == ["table/n", "table/x", "w"]


def test_arrays_before_the_path_are_an_error_that_says_the_order():
    with pytest.raises(TypeError, match=r"the first argument is a dict\. Hint: write\(path, arrays\)"):
        nd.write({"a": np.zeros(2)}, "a.npz")


def test_names_that_meet_are_an_error_not_a_lost_array(tmp_path):
    for tree in (
        {"a/b": ARRAY, "a": {"b": ARRAY}},
        {0: ARRAY, "0": ARRAY},
        {"t": pd.DataFrame({"x": [1.5]}), "t/x": ARRAY},
        {"t/x": ARRAY, "t": pd.DataFrame({"x": [1.5]})},
    ):
        with pytest.raises(nd.FormatError, match="two arrays would have the name"):
            nd.write(tmp_path / "f.safetensors", tree)
    assert names_in(tmp_path) == []


def test_lazy_arrays_are_written_as_they_lie(tmp_path):
    nd.write(tmp_path / "a.safetensors", {"a": {"x": ARRAY}, "y": filled("bfloat16")})
    back = nd.read(tmp_path / "a.safetensors")
    nd.write(tmp_path / "b.safetensors", back)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    nd.write(tmp_path / "c.safetensors", {"deep": back["a"], "y": back["y"]}, dtype="float32")
    again = nd.read(tmp_path / "c.safetensors")
    assert_same(again["deep/x"][...], tensor_holding(ARRAY.astype("f4")))
    assert again["y"].dtype == torch.float32


# --- what no file holds

REFUSED = {
    "mask": np.ma.masked_equal([1, 2], 2),
    "objects": np.array([None, {}]),
    "none": None,
    "a set": {1, 2},
    "a function": print,
    "an object": SimpleNamespace(x=1),
    "meta": torch.ones(2, device="meta"),
    "fake key": {1.5: ARRAY},
    "truth as key": {True: ARRAY},
}


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_file_holds_is_named_before_anything_is_written(kind, suffix, tmp_path):
    fine = {} if suffix == ".npy" else {"fine": ARRAY}
    with pytest.raises((nd.UnsupportedTypeError, nd.FormatError)) as error:
        nd.write(tmp_path / f"a{suffix}", {**fine, "odd": REFUSED[kind]})
    said = " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert "odd" in said or "key" in kind, said
    assert names_in(tmp_path) == []


def test_sparse_matrices_are_no_arrays(tmp_path):
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.write(tmp_path / "a.safetensors", {"odd": scipy.sparse.csr_array(np.eye(3))})
    assert "odd" in " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert names_in(tmp_path) == []


def test_a_structure_that_holds_itself_is_an_error(tmp_path):
    tree: Any = {}
    tree["a"] = tree
    chain: Any = []
    chain += [chain, chain]
    for each in (tree, chain, {"x": chain}):
        with pytest.raises(nd.FormatError, match="levels deep"):
            nd.write(tmp_path / "a.safetensors", each)
    assert names_in(tmp_path) == []


def test_tensors_that_require_grad_or_are_conjugated_are_written_as_their_values(tmp_path):
    t = torch.tensor([1 + 2j, 3], dtype=torch.complex64)
    nd.write(
        tmp_path / "a.safetensors", {"g": torch.ones(2, requires_grad=True) * 2, "c": t.conj(), "n": t.conj().imag}
    )
    back = nd.read(tmp_path / "a.safetensors")
    assert_same(back["g"][...], torch.tensor([2.0, 2]))
    assert_same(back["c"][...], t.conj().resolve_conj())
    assert_same(back["n"][...], t.conj().imag.clone())


# --- casts in the stream


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 bytes, so that small arrays are streamed in many."""
    monkeypatch.setattr("ndtorch.files.arrays.BLOCK", 64)
    monkeypatch.setattr("ndtorch.files.arrays._SLAB", 256)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_an_inexact_value_is_found_wherever_it_is(suffix, where, order, tmp_path, small_blocks):
    for index in [(0, 0, 0), (2, 3, 4), (1, 2, 0), (4, 6, 8)]:
        array = np.zeros((5, 7, 9), order=order)
        array[index] = 2.0**24 + 1
        np.save(tmp_path / "a.npy", array)
        source = array if where == "memory" else nd.read(tmp_path / "a.npy")["a"]
        with pytest.raises(nd.LossyCastError) as error:
            nd.write(tmp_path / f"b{suffix}", {"x": source}, dtype="float32", casting="exact")
        assert f"at index {', '.join(map(str, index))}" in str(error.value).replace("(", "").replace("[", ""), index
        assert error.value.path == "['x']"
        assert names_in(tmp_path) == ["a.npy"]


@given(
    st.sampled_from([("float64", "float32"), ("int16", "int64"), ("float32", "bfloat16"), ("bfloat16", "float16")]),
    st.sampled_from(["C", "F", "strided"]),
    st.lists(st.integers(0, 6), max_size=4),
)
@settings(max_examples=60)
def test_a_cast_in_the_stream_is_the_cast_of_to_torch(tmp_path_factory, dtypes, order, shape):
    folder = tmp_path_factory.mktemp("cast")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ndtorch.files.arrays.BLOCK", 64)
        patch.setattr("ndtorch.files.arrays._SLAB", 128)
        array = filled(dtypes[0], tuple(shape))
        array = pitched(array, array.itemsize * 2) if order == "strided" else np.asarray(array, order=order)
        nd.write(folder / "a.npy", array, verify=True)
        expected = nd.to_torch(array, dtype=dtypes[1])
        for source, target in (("a.npy", "b.safetensors"), ("a.npy", "b.npy"), ("b.npy", "c.safetensors")):
            written = nd.convert_file(folder / source, folder / target, dtype=dtypes[1], verify=True, name="x")
            assert written[0].plan.dtype == dtypes[1]
            assert_same(nd.read(folder / target, name="x")["x"][...], expected)


def test_float_dtype_casts_floats_alone(tmp_path):
    tree = {"x": np.ones(2), "y": np.ones(2, np.int8), "z": np.ones(2, np.complex128)}
    nd.write(tmp_path / "a.safetensors", tree, float_dtype="float32")
    back = nd.read(tmp_path / "a.safetensors")
    assert [back[name].dtype for name in "xyz"] == [torch.float32, torch.int8, torch.complex64]


def test_what_is_no_dtype_is_an_error_of_the_function_that_was_called(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3, np.complex64))
    for dtype in ("float23", "complex32"):
        with pytest.raises(nd.NdtorchError, match=f"^write: dtype='?{dtype}'? is no"):
            nd.write(tmp_path / "y.npy", ARRAY, dtype=dtype)
        with pytest.raises(nd.NdtorchError, match=f"^convert_file: dtype='?{dtype}'? is no"):
            nd.convert_file(tmp_path / "x.npy", tmp_path / "y.npy", dtype=dtype)
    assert not (tmp_path / "y.npy").exists()


def test_a_cast_that_is_not_allowed_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(nd.LossyCastError, match="int32") as error:
        nd.write(tmp_path / "b.safetensors", {"fine": np.arange(3), "odd": np.ones(2)}, dtype="int32")
    assert error.value.path == "['odd']"
    assert names_in(tmp_path) == []


def test_converting_says_what_became_of_each_array(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(ARRAY))
    (one,) = nd.convert_file(tmp_path / "a.npy", tmp_path / "a.safetensors")
    assert (one.name, one.nbytes, one.note) == ("a", 96, "laid out row by row in the file")
    (one,) = nd.convert_file(tmp_path / "a.npy", tmp_path / "b.npy")
    assert one.note == ""
    np.save(tmp_path / "c.npy", ARRAY.astype(">f8"))
    (one,) = nd.convert_file(tmp_path / "c.npy", tmp_path / "c.safetensors")
    assert one.plan.reason == "its values are in a file"


# --- read back and compared


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_verifying_notices_one_flipped_bit_and_leaves_the_old_file(suffix, order, tmp_path, monkeypatch):
    put(tmp_path / f"a{suffix}", b"old")
    array = np.asarray(np.arange(600.0).reshape(20, 30), order=order)
    real = output.Output._put

    def put_flipped(self, data):
        if isinstance(data, np.ndarray) and data.nbytes > 100:
            data = data.copy()
            data.reshape(-1).view(np.uint8)[-3] ^= 1
        return real(self, data)

    monkeypatch.setattr(output.Output, "_put", put_flipped)
    nd.write(tmp_path / f"unverified{suffix}", array)
    with pytest.raises(nd.FormatError) as error:
        nd.write(tmp_path / f"a{suffix}", array, overwrite=True, verify=True)
    assert str(error.value) == (
        "write: 'a' reads back different from what was written. "
        "Hint: the disk or the memory is faulty, or the source has changed."
    )
    assert (tmp_path / f"a{suffix}").read_bytes() == b"old"
    assert names_in(tmp_path) == [f"a{suffix}", f"unverified{suffix}"]


PADDED = np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True)


@pytest.mark.parametrize("layout", ["C", "F", "reversed"])
def test_verifying_looks_at_fields_not_at_what_is_between_them(layout, tmp_path, small_blocks):
    array = np.zeros((9, 8), PADDED)
    array["b"] = np.arange(72).reshape(9, 8)
    array = array[::-1, ::-1] if layout == "reversed" else np.asarray(array, order=layout)
    nd.write(tmp_path / "a.npy", array, verify=True)
    assert_same(nd.read(tmp_path / "a.npy", to="numpy")["a"][...], array)


# --- places


def test_an_existing_target_is_kept_unless_told_otherwise(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(2))
    put(tmp_path / "b.safetensors", b"old")
    with pytest.raises(nd.FormatError) as error:
        nd.convert_file(tmp_path / "a.npy", tmp_path / "b.safetensors")
    hint = "Hint: overwrite=True (--overwrite) replaces it, all or nothing."
    assert message(error, tmp_path) == f"convert_file: 'b.safetensors' exists. {hint}"
    assert (tmp_path / "b.safetensors").read_bytes() == b"old"
    nd.convert_file(tmp_path / "a.npy", tmp_path / "b.safetensors", overwrite=True)
    assert nd.read(tmp_path / "b.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_source_and_target_must_differ(link, tmp_path):
    source = tmp_path / "a.npy"
    np.save(source, np.ones(2))
    target = source if link == "same" else tmp_path / "b.npy"
    if link != "same":
        (os.symlink if link == "symbolic" else os.link)(source, target)
    with pytest.raises(nd.FormatError, match="source and target are the same file, "):
        nd.convert_file(source, target, overwrite=True)


def test_a_file_may_be_written_from_itself(tmp_path):
    nd.write(tmp_path / "a.safetensors", {"x": ARRAY, "y": ARRAY})
    back = nd.read(tmp_path / "a.safetensors")
    nd.write(tmp_path / "a.safetensors", {"x": back["x"], "z": back["y"]}, overwrite=True, verify=True)
    assert_same(nd.read(tmp_path / "a.safetensors", to="numpy")["z"][...], ARRAY)
    assert_same(back["y"][...], tensor_holding(ARRAY))


def test_none_is_refused_by_name_and_nothing_is_written(tmp_path):
    with pytest.raises(nd.UnsupportedTypeError, match="cannot write 'config/schedule': files hold arrays, not None"):
        nd.write(tmp_path / "a.npz", {"x": np.ones(2), "config": {"schedule": None}})
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_missing_or_in_the_way_are_named(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(nd.FormatError, match="it is a folder"):
        nd.write(tmp_path / "folder.npy", {"x": np.ones(2)}, overwrite=True)
    with pytest.raises(nd.FormatError, match=r"no folder '.*none'\. Hint: os\.makedirs\('.*none'\) makes it"):
        nd.write(tmp_path / "none" / "a.npy", {"x": np.ones(2)})
    with pytest.raises(nd.FormatError, match="has no suffix"):
        nd.write(tmp_path / "a", {"x": np.ones(2)})
    nd.write(tmp_path / "a", {"x": np.ones(2)}, format="npy")
    assert nd.read(tmp_path / "a", name="x")["x"].tolist() == [1, 1]


def test_pictures_are_read_not_written(tmp_path):
    with pytest.raises(nd.FormatError, match="pictures are read, not written"):
        nd.write(tmp_path / "a.png", {"x": np.ones((2, 2), np.uint8)})


def test_memory_stays_bounded_while_a_large_file_is_cast_and_transposed(tmp_path):
    """Far more elements than a block: what is held at once is measured by what is asked of NumPy."""
    import tracemalloc

    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", "f4", (4000, 12_000), fortran_order=True)
    array[:, 0] = 1
    del array
    tracemalloc.start()
    nd.convert_file(tmp_path / "a.npy", tmp_path / "b.safetensors", dtype="float64")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20
    assert float(nd.read(tmp_path / "b.safetensors")["a"][:, :2].sum()) == 4000


def test_the_digits_survive_every_format_there_and_back(tmp_path):
    source = Path(__file__).parents[1] / "examples" / "data" / "digits.npz"
    with np.load(source) as original, warnings.catch_warnings():
        arrays = dict(original)
    nd.write(tmp_path / "a.safetensors", arrays, verify=True)
    for name, array in arrays.items():
        nd.convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", overwrite=True)
        assert_same(nd.read(tmp_path / "b.safetensors")[name][...], tensor_holding(array))
    assert isinstance(open_file(tmp_path / "b.safetensors").format, Format)
