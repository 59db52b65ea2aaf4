"""`read`: a lazy mapping of arrays that are read when touched, that no write of ours reaches, and that never lie."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, tensor_holding
from made_files import message, names_in, npy_bytes, put, safetensors_bytes
from processes import descriptors_of

import ndtorch as nd
from ndtorch import files
from ndtorch.files import open_file, storage


@pytest.fixture
def path(tmp_path) -> Path:
    """Three arrays: one of rows, one of columns, one number."""
    arrays = {"x": np.arange(12.0).reshape(3, 4), "a/b": np.arange(6, dtype=np.int32), "a/c/d": np.array(2.5)}
    nd.write(tmp_path / "f.safetensors", arrays)
    return tmp_path / "f.safetensors"


# --- the mapping


def test_it_is_a_mapping_of_names(path):
    back = nd.read(path)
    assert list(back) == ["a/c/d", "x", "a/b"]
    assert len(back) == 3
    assert "x" in back
    assert "a" in back
    assert "y" not in back
    assert 3 not in back
    assert back.get("y") is None
    for missing in ("y", "", "a/", "x/", "/x", 3, None):
        with pytest.raises(KeyError):
            back[missing]
    with pytest.raises(KeyError, match=r"has no array 'a/y'; expected one of 'c/d', 'b'"):
        back["a"]["y"]


def test_an_unknown_name_is_told_some_that_are_known(tmp_path):
    nd.write(tmp_path / "many.npz", {f"n{i}": np.zeros(1) for i in range(12)})
    with pytest.raises(KeyError, match=r"'y'; expected one of 'n0', .*'n9', \.\.\."):
        nd.read(tmp_path / "many.npz")["y"]


def test_a_missing_file_is_what_python_calls_one(tmp_path):
    for call in (nd.read, nd.inspect, nd.Loader):
        with pytest.raises(FileNotFoundError, match="no such file") as caught:
            call(str(tmp_path / "none.npy"))
        assert isinstance(caught.value, nd.FormatError)
        assert caught.value.filename == str(tmp_path / "none.npy")
        assert caught.value.errno == errno.ENOENT


def test_steps_of_names_lead_into_it(path):
    back = nd.read(path)
    assert list(back["a"]) == ["c/d", "b"]
    assert len(back["a"]) == 2
    assert back["a"]["c"]["d"].item() == 2.5
    assert back["a"]["b"].tolist() == back["a/b"].tolist()
    nested = back.nested()
    assert (list(nested), list(nested["a"])) == (["a", "x"], ["c", "b"])


def test_names_that_are_array_and_folder_at_once_are_read_but_not_nested(tmp_path):
    names = {"x": np.ones(1), "x/y": np.ones(2)}
    header, offset = {}, 0
    for name, array in names.items():
        header[name] = {"dtype": "F64", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    back = nd.read(put(tmp_path / "a.safetensors", safetensors_bytes(header, bytes(offset))))
    assert back["x"].shape == (1,)
    assert back["x/y"].shape == (2,)
    with pytest.raises(nd.FormatError, match="'x/y' would be the name of an array and of what holds other arrays"):
        back.nested()


def test_its_text_is_a_table_and_reads_nothing(path):
    assert repr(nd.read(path)) == "3 arrays\n  a/c/d  float64[]\n  x      float64[3,4]\n  a/b    int32[6]"
    assert repr(nd.read(path)["a"]) == "2 arrays\n  c/d  float64[]\n  b    int32[6]"
    assert repr(nd.read(path)["x"]) == "<'x': float64[3,4], not read>"


def test_a_file_of_one_array_is_named_by_its_stem_unless_told_otherwise(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(2))
    assert list(nd.read(tmp_path / "w.npy")) == ["w"]
    assert list(nd.read(tmp_path / "w.npy", name="layer/w")) == ["layer/w"]
    assert nd.read(tmp_path / "w.npy", name="layer/w")["layer"]["w"].tolist() == [1, 1]


def test_facts_are_those_of_what_it_gives(tmp_path):
    np.save(tmp_path / "t.npy", np.array(["Ada", "Bo"]))
    tensors, arrays = nd.read(tmp_path / "t.npy")["t"], nd.read(tmp_path / "t.npy", to="numpy")["t"]
    assert (arrays.dtype, arrays.shape, arrays.ndim, arrays.nbytes, len(arrays)) == (np.dtype("<U3"), (2,), 1, 24, 2)
    assert (tensors.dtype, tensors.shape) == (tensors[...].dtype, tensors[...].shape)
    assert arrays.tolist() == ["Ada", "Bo"]


# --- formats and places


def test_first_bytes_tell_the_format_where_the_suffix_does_not(path, tmp_path):
    np.save(tmp_path / "w.npy", np.ones(2))
    (tmp_path / "w.npy").rename(tmp_path / "w")
    path.rename(tmp_path / "weights.bin")
    assert nd.read(tmp_path / "w")["w"].tolist() == [1, 1]
    assert list(nd.read(tmp_path / "weights.bin")) == ["a/c/d", "x", "a/b"]


def test_suffixes_are_read_in_any_case_and_a_format_overrules_them(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    nd.convert_file(tmp_path / "X.NPY", tmp_path / "x.SafeTensors")
    assert nd.read(str(tmp_path / "x.SafeTensors"))["X"].tolist() == [1, 1, 1]
    (tmp_path / "X.NPY").rename(tmp_path / "x.safetensors")
    assert nd.read(tmp_path / "x.safetensors", format="npy")["x"].tolist() == [1, 1, 1]
    with pytest.raises(nd.FormatError):
        nd.read(tmp_path / "x.safetensors")
    with pytest.raises(nd.InvalidOptionError, match="format='csv' is unknown"):
        nd.read(tmp_path / "x.safetensors", format="csv")
    with pytest.raises(nd.InvalidOptionError, match="to='jax'"):
        nd.read(tmp_path / "x.safetensors", to="jax")


def test_unknown_suffixes_name_the_known_ones(tmp_path):
    put(tmp_path / "a.csv", b"1,2\n")
    with pytest.raises(nd.FormatError) as error:
        nd.read(tmp_path / "a.csv")
    assert message(error, tmp_path).startswith("read: 'a.csv' has an unknown suffix, '.csv'. Hint: known are .npy, ")
    put(tmp_path / "a", b"")
    with pytest.raises(nd.FormatError, match="has no suffix"):
        nd.read(tmp_path / "a")


def test_missing_files_pipes_and_names_that_are_none_are_told(tmp_path):
    with pytest.raises(nd.FormatError) as error:
        nd.read(tmp_path / "none.npy")
    assert message(error, tmp_path) == "read: 'none.npy': no such file."
    put(tmp_path / "a.npy", b"")
    with pytest.raises(nd.FormatError, match="no such file"):
        nd.read(tmp_path / "a.npy" / "b.npy")
    with pytest.raises(nd.FormatError, match="is no name of a file"):
        nd.read("a\0b.npy")
    os.mkfifo(tmp_path / "p.npy")
    with pytest.raises(nd.FormatError, match="is not a regular file"):
        nd.read(tmp_path / "p.npy")


# --- what becomes of the file meanwhile


def test_a_file_that_is_replaced_or_deleted_stays_what_it_was(path, tmp_path):
    back = nd.read(path)
    held = back["x"][...]
    nd.write(tmp_path / "other.safetensors", {"x": np.zeros(1)})
    (tmp_path / "other.safetensors").replace(path)
    assert back["x"].tolist() == held.tolist() == np.arange(12.0).reshape(3, 4).tolist()
    path.unlink()
    assert back["x"][1:].sum() == 60
    assert nd.to_numpy(back["x"]).sum() == 66


def test_a_file_that_was_cut_is_a_format_error_not_a_crash(path):
    back, arrays = nd.read(path), nd.read(path, to="numpy")
    os.truncate(path, path.stat().st_size - 60)
    touches = (
        lambda: back["x"][...],
        lambda: back["x"][0],
        lambda: back["x"][[0, 1]],
        lambda: back["x"].sum(),
        lambda: nd.to_torch(back),
        lambda: nd.to_numpy(back["x"]),
        lambda: arrays["x"] + 1,
        lambda: np.asarray(arrays["x"]),
        lambda: nd.convert_file(path, path.with_suffix(".npy")),
        lambda: nd.write(path.with_name("b.safetensors"), back),
    )
    for touch in touches:
        with pytest.raises(nd.FormatError) as error:
            touch()
        assert "ends before its" in str(error.value)
    assert names_in(path.parent) == ["f.safetensors"]


def test_a_changed_working_folder_does_not_matter(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    back = nd.read(path.name)
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(back["a/c/d"])).item() == 2.5
    assert back["a/c/d"].item() == 2.5


MANY = """
import resource, sys, numpy as np, ndtorch as nd
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
backs = [nd.read(path) for path in sys.argv[1:] for _ in range(700)]
kept = [back["x"][...] for back in backs]
assert all(each.tolist() == [1, 2] for each in kept), "values"
nd.write(sys.argv[1], {"x": np.zeros(2)}, overwrite=True)
for back in backs[:1]:
    try: back["x"][...]
    except nd.FormatError as error: print("has been replaced" in str(error))
print(sum(back["x"].tolist() == [1, 2] for back in backs[-100:]))
"""


def test_more_files_than_descriptors_are_read_and_a_replaced_one_is_noticed(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for each in paths:
        nd.write(each, {"x": np.array([1.0, 2])})
    done = subprocess.run([sys.executable, "-c", MANY, *paths], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n100\n", done.stderr


def test_threads_read_one_file_while_others_are_opened_and_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_MAX_HELD", 2)
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full(1000, i))
    backs = [nd.read(tmp_path / f"{i}.npy", to="numpy")[str(i)] for i in range(8)]
    wrong = []

    def look() -> None:
        for turn in range(100):
            i = turn % 8
            values = backs[i].stored.read() if turn % 3 else backs[i][...]
            if not (values == i).all() or nd.read(tmp_path / f"{i}.npy")[str(i)][5] != i:
                wrong.append(i)

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_files_are_closed_when_nobody_needs_them(path):
    for _ in range(20):
        back = nd.read(path)
        kept = back["x"][...]
        assert descriptors_of(path) == 1
        del back
    assert descriptors_of(path) == 0
    assert kept.sum() == 66


def test_what_closes_a_file_runs_no_python_and_so_swallows_no_ctrl_c(path):
    opened = storage.LocalStorage(path)
    assert [each for each in weakref.getweakrefs(opened) if each.__callback__ is not None] == []
    assert not hasattr(type(opened), "__del__")
    assert descriptors_of(path) == 1
    del opened
    assert descriptors_of(path) == 0


def test_forked_processes_read_too(path):
    back = nd.read(path)
    kept = back["x"][...]
    pid = os.fork()
    if not pid:  # the child says what it found by its exit status
        kept[0, 0] = 100
        os._exit(int(back["x"].sum() == 66 and kept.sum() == 166 and back["a/b"].sum() == 15))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert kept.sum() == 66


# --- copies and pickles


def test_copies_are_the_same_reference_to_the_file(path):
    back = nd.read(path)
    for each in (back, back["a"], back["x"]):
        assert copy.copy(each) is each
        assert copy.deepcopy(each) is each


@pytest.mark.parametrize("to", ["torch", "numpy"])
def test_pickles_open_the_file_again(to, path):
    back = nd.read(path, to=to)
    again = pickle.loads(pickle.dumps({"all": back, "part": back["a"], "x": back["x"], "b": back["a"]["b"]}))
    assert again["all"].nested().keys() == back.nested().keys()
    assert again["part"]["c/d"].item() == 2.5
    assert_same(again["x"][...], back["x"][...])
    assert_same(again["b"][1:], back["a/b"][1:])
    np.save(path.parent / "w.npy", np.ones(2))
    assert pickle.loads(pickle.dumps(nd.read(path.parent / "w.npy", name="n")["n"])).tolist() == [1, 1]


def test_a_pickle_of_a_file_that_has_changed_or_gone_is_a_format_error(path):
    pickled = pickle.dumps(nd.read(path)["x"])
    nd.write(path, {"x": np.ones(3)}, overwrite=True)
    with pytest.raises(
        nd.FormatError, match=r"is not the file that 'x' was pickled from; expected float64\[3,4\], got"
    ):
        pickle.loads(pickled)
    nd.write(path, {"y": np.ones(3)}, overwrite=True)
    with pytest.raises(nd.FormatError, match="no such array"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(nd.FormatError, match="no such file"):
        pickle.loads(pickled)


def test_workers_of_a_data_loader_read_the_file_themselves(path):
    loader = torch.utils.data.DataLoader(
        nd.read(path)["x"], batch_size=2, num_workers=1, multiprocessing_context="fork"
    )
    assert torch.cat(list(loader)).tolist() == np.arange(12.0).reshape(3, 4).tolist()


# --- the rest of the library


def test_to_torch_and_to_numpy_read_all_into_memory_of_their_own(path):
    back = nd.read(path)
    tensors, arrays = nd.to_torch(back), nd.to_numpy(back)
    assert list(tensors) == list(arrays) == list(back)
    assert_same(tensors["x"], tensor_holding(np.arange(12.0).reshape(3, 4)))
    assert_same(arrays["a/b"], np.arange(6, dtype=np.int32))
    assert_independent(tensors["x"], back["x"][...])
    assert_independent(arrays["x"], tensors["x"])
    assert_same(nd.to_torch(back["x"], dtype="float32"), tensors["x"].float())
    assert_same(nd.to_torch({"deep": [back["a/b"]]})["deep"][0], tensors["a/b"])


def test_a_plan_reads_nothing_and_says_that_it_copies(path):
    lazy = nd.read(path)["x"]
    plan = nd.explain(lazy)
    assert (plan.action, plan.shares, plan.dtype, plan.shape) == ("read", False, "float64", (3, 4))
    assert "in a file" in plan.reason
    assert not nd.shares_memory(lazy, lazy[...])
    with pytest.raises(nd.CopyRequiredError, match="its values are in a file"):
        nd.to_torch(lazy, copy=False)


def test_samples_in_files_are_stacked_and_collated(path):
    back = nd.read(path)
    twice = np.stack([np.arange(12.0).reshape(3, 4)] * 2)
    assert_same(nd.stack([back["x"], back["x"]]), tensor_holding(twice))
    assert_same(nd.collate([back["x"], back["x"]]), tensor_holding(twice))
    assert_same(nd.collate([{"x": back["x"]}, {"x": back["x"]}])["x"], tensor_holding(twice))


def test_a_model_is_loaded_from_the_mapping(tmp_path):
    model, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    nd.write(tmp_path / "m.safetensors", model.state_dict())
    other.load_state_dict(nd.read(tmp_path / "m.safetensors"))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    with torch.device("meta"):
        third = torch.nn.Linear(4, 3)
    third.load_state_dict({name: lazy[...] for name, lazy in nd.read(tmp_path / "m.safetensors").items()}, assign=True)
    assert third(torch.ones(4)).equal(model(torch.ones(4)))


@pytest.mark.parametrize(
    "row", [row for row in files.FORMATS if row.name in ("npy", "safetensors")], ids=lambda r: r.name
)
def test_unaligned_elements_are_read_where_they_cannot_be_mapped(row, tmp_path):
    values = np.arange(5.0)
    if row.name == "npy":
        data = npy_bytes("<f8", (5,), values.tobytes())
    else:
        data = safetensors_bytes({"x": {"dtype": "F64", "shape": [5], "data_offsets": [0, 40]}}, values.tobytes())
    put(tmp_path / f"x{row.suffixes[0]}", data)
    stored = open_file(tmp_path / f"x{row.suffixes[0]}")["x"]
    assert stored.layout.offset % 8
    assert stored.map() is None
    lazy = nd.read(tmp_path / f"x{row.suffixes[0]}")["x"]
    assert_same(lazy[...], tensor_holding(values))
    assert_same(lazy[1:4:2], tensor_holding(values[1:4:2]))
    assert lazy[...].data_ptr() % 8 == 0


@pytest.mark.parametrize("format", ["npy", "npz", "safetensors", "pt", "h5"])
def test_a_suffix_that_lies_is_an_error_that_says_what_the_first_bytes_are(format, tmp_path):
    nd.write(tmp_path / f"a.{format}", {"x": np.ones(2)})
    lying = (tmp_path / f"a.{format}").rename(tmp_path / ("b.npz" if format == "npy" else "b.npy"))
    with pytest.raises(nd.FormatError) as error:
        nd.read(lying)
    assert f"format={format!r} (--from {format}) reads it" in str(error.value)
    assert nd.read(lying, format=format, name="x")["x"].tolist() == [1, 1]


def test_a_truncated_file_of_the_right_suffix_gets_no_hint_at_its_format(tmp_path):
    nd.write(tmp_path / "a.npy", np.ones(100))
    os.truncate(tmp_path / "a.npy", 300)
    with pytest.raises(nd.FormatError, match="ends before its array") as error:
        nd.read(tmp_path / "a.npy")
    assert error.value.hint is None
