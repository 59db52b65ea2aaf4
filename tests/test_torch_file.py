"""Torch's own files: read without torch and without executing anything, written for `torch.load` as it is safest."""

from __future__ import annotations

import collections
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import array_holding, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, filled

import ndtorch as nd
from ndtorch.files import open_file, torch_pickle

TENSORS = {name: torch.from_numpy(filled("float32", (3, 4))).to(pair[1]) for name, pair in DTYPES.items()}


def saved(folder: Path, value: Any, **options: Any) -> Path:
    torch.save(value, folder / "a.pt", **options)
    return folder / "a.pt"


def arrays_of(folder: Path, value: Any, **options: Any) -> dict[str, Any]:
    found = open_file(saved(folder, value, **options))
    return {name: None if array.is_none else array.read() for name, array in found.items()}


def joined(blocks: Any) -> np.ndarray:
    return np.concatenate([block.copy() for block in blocks])


# ---- reading what torch.save writes ----


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("protocol", [2, 5])
def test_every_dtype_is_read(name, protocol, tmp_path):
    tensor = TENSORS[name]
    arrays = arrays_of(tmp_path, {"x": tensor, "t": tensor.T, "none": tensor[:0]}, pickle_protocol=protocol)
    assert_same(arrays["x"], array_holding(tensor))
    assert_same(arrays["t"], array_holding(tensor.T))
    assert_same(arrays["none"], array_holding(tensor[:0]))


def test_views_of_one_storage_are_read_as_such(tmp_path):
    base = torch.arange(120.0).reshape(4, 5, 6)
    views = {
        "whole": base,
        "transposed": base.permute(2, 1, 0),
        "part": base[1:3, ::2, 1],
        "between": base.permute(1, 0, 2),
        "expanded": base[0, 0].expand(7, 6),
        "element": base[1, 2, 3],
        "windows": base.reshape(-1).unfold(0, 10, 5),
    }
    path = saved(tmp_path, views)
    assert path.stat().st_size < 4000  # one record
    for name, found in open_file(path).items():
        expected = views[name].numpy()
        assert_same(found.read(), expected)
        assert_same(found.map(), expected, strides=True)
        assert_same(joined(found.blocks()), expected.reshape(-1))
        if expected.ndim:
            assert_same(found.select((..., slice(0, None, 2))), expected[..., ::2])


def test_a_strided_tensor_is_streamed_in_small_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("ndtorch.files.arrays._SLAB", 256)
    monkeypatch.setattr("ndtorch.files.arrays._NEAR", 128)
    base = torch.arange(5040.0).reshape(7, 8, 9, 10)
    for order in ((1, 0, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0), (0, 3, 1, 2)):
        view = base.permute(order)
        found = open_file(saved(tmp_path, {"x": view}))["x"]
        assert found.order == "strided"
        assert_same(joined(found.blocks()), view.numpy().reshape(-1))


def test_checkpoints_keep_their_names(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": None}
    arrays = arrays_of(tmp_path, checkpoint)
    for name, tensor in model.state_dict().items():
        assert_same(arrays[f"model/{name}"], tensor.numpy())
    for index, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            assert_same(arrays[f"optimizer/state/{index}/{name}"], tensor.numpy())
    assert arrays["optimizer/param_groups/0/betas"].tolist() == [0.9, 0.999]
    assert arrays["optimizer/param_groups/0/params"].tolist() == [0, 1, 2, 3]
    assert arrays["epoch"].tolist() == 3
    assert arrays["best"] is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_is_no_tensor_is_an_array_or_none(protocol, tmp_path):
    attributes = torch.ones(2)
    attributes.note = "here"
    tree = {
        "number": 0.5,
        "truth": True,
        "complex": 1 + 2j,
        "large": 2**63 + 1,
        "text": "héllo",
        "bytes": b"a\xff\0",
        "buffer": bytearray(b"xy"),
        "size": torch.Size([2, 3]),
        "mixed": [1, 2.5, {"x": torch.ones(1)}],
        "ordered": collections.OrderedDict(b=(True, False), a=1),
        "counted": collections.Counter("aab"),
        "set": {7},
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "attributes": attributes,
        7: [],
        "empty": [None, {}, ()],
    }
    arrays = arrays_of(tmp_path, tree, pickle_protocol=protocol)
    assert {name: None if value is None else value.tolist() for name, value in arrays.items()} == {
        "number": 0.5,
        "truth": True,
        "complex": 1 + 2j,
        "large": 2**63 + 1,
        "text": "héllo",
        "bytes": [97, 255, 0],
        "buffer": [120, 121],
        "size": [2, 3],
        "mixed/0": 1,
        "mixed/1": 2.5,
        "mixed/2/x": [1],
        "ordered/b": [True, False],
        "ordered/a": 1,
        "counted/a": 2,
        "counted/b": 1,
        "set": [7],
        "parameter": [1, 1],
        "attributes": [1, 1],
        "empty/0": None,
    }


# ---- None, which no other file holds ----

TREE_WITH_NONE = {"x": torch.arange(3.0), "best": None, "opt": [{"foreach": None, "lr": torch.ones(1)}]}


@pytest.mark.parametrize("to", ["torch", "numpy"])
def test_none_is_read_as_none_and_in_no_silence_left_out(to, tmp_path):
    arrays = nd.read(saved(tmp_path, TREE_WITH_NONE), to=to)
    assert list(arrays) == ["x", "best", "opt/0/foreach", "opt/0/lr"]
    assert arrays["best"] is None
    assert arrays["opt"]["0"]["foreach"] is None
    assert arrays.nested()["best"] is None
    assert "  best           None" in repr(arrays)
    assert_same(
        nd.to_torch(arrays),
        {"x": torch.arange(3.0), "best": None, "opt/0/foreach": None, "opt/0/lr": torch.ones(1)},
    )
    assert nd.to_numpy(arrays)["best"] is None
    assert not nd.shares_memory(arrays, torch.ones(2))
    assert arrays.stored("best").nbytes == 0


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "h5", "zarr", "pt"])
def test_none_is_refused_by_name_before_anything_is_written(suffix, tmp_path):
    source, target = saved(tmp_path, TREE_WITH_NONE), tmp_path / f"b.{suffix}"
    with pytest.raises(
        nd.UnsupportedTypeError, match=r"array 'best' is None: no array\. Hint: leave it out: "
    ) as caught:
        nd.convert_file(source, target)
    with pytest.raises(nd.UnsupportedTypeError, match="cannot write 'best'"):
        nd.write(target, nd.read(source))
    assert list(tmp_path.iterdir()) == [source]
    eval(caught.value.hint.removeprefix("leave it out: "), {"ndtorch": nd, "source": source, "target": target})
    assert sorted(nd.read(target)) == ["opt/0/lr", "x"]


def test_none_is_none_in_the_batches_of_a_loader_and_no_sample(tmp_path):
    arrays = nd.read(saved(tmp_path, {"x": torch.arange(3.0), "best": None}))
    [batch] = nd.Loader(arrays, 3)
    assert_same(batch, {"x": torch.arange(3.0), "best": None})
    with pytest.raises(nd.UnsupportedTypeError, match=r"^Loader: .* array 'best' is None") as caught:
        list(nd.Loader(arrays.values(), 2))
    assert caught.value.index == (1,)
    with pytest.raises(nd.UnsupportedTypeError, match="cannot convert None"):
        nd.stack(arrays.values())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "a device or a layout"),
        (torch.strided, "a device or a layout|torch.strided"),
    ],
    ids=str,
)
def test_a_dtype_a_device_or_a_layout_is_named_as_what_no_array_is(value, kind, tmp_path):
    source = saved(tmp_path, {"x": torch.ones(2), "odd": value})
    arrays = nd.read(source)
    assert_same(arrays["x"][...], torch.ones(2))
    with pytest.raises(nd.UnsupportedTypeError, match=f"array 'odd' is ({kind}): no array. Hint: leave it out"):
        arrays["odd"][...]
    with pytest.raises(nd.UnsupportedTypeError, match="array 'odd' is "):
        nd.convert_file(source, tmp_path / "b.safetensors")


# ---- long ones ----


def test_a_pickle_may_be_as_long_as_its_file(tmp_path):
    text = "words " * (3 << 20)  # 18 MB
    arrays = arrays_of(tmp_path, {"x": torch.ones(2), "bytes": bytes(17 << 20), "text": text})
    assert arrays["bytes"].shape == (17 << 20,)
    assert arrays["text"].tolist() == text
    assert_same(arrays["x"], np.ones(2, np.float32))


def test_more_tensors_are_more_steps_and_more_values_an_error_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MAX_STEPS", 100)
    parameters = {f"layer.{i}": torch.nn.Parameter(torch.ones(1)) for i in range(50)}
    assert len(arrays_of(tmp_path, parameters)) == 50
    path = saved(tmp_path, {"x": torch.ones(1), "words": [f"word {i}" for i in range(300)]})
    with pytest.raises(
        nd.FormatError, match=r"a pickle of more than 150 steps.* Hint: ndtorch\.write\('x\.safetensors'"
    ):
        nd.read(path)


def test_a_lone_tensor_is_called_as_its_file_or_as_told(tmp_path):
    path = saved(tmp_path, torch.arange(3))
    assert list(nd.read(path)) == ["a"]
    assert list(nd.read(path, name="b")) == ["b"]
    assert list(nd.read(saved(tmp_path, {"": torch.arange(3)}))) == [""]


UNREADABLE = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "is sparse: no plain array"),
    "compressed": (lambda: torch.eye(2).to_sparse_csr(), "is sparse: no plain array"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "is quantized"),
    "meta": (lambda: torch.ones(2, device="meta"), "is on the meta device, without elements"),
    "complex32": (lambda: torch.ones(2, dtype=torch.complex64).to(torch.complex32), "is complex32, which NumPy has no"),
    "conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "was saved with a conjugate or negative bit"),
    "integer": (lambda: 2**70, "is an integer of 71 bits, more than 64"),
    "text": (lambda: "a\0", "is text that ends in NUL"),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:ComplexHalf", "ignore:torch.quantize", "ignore:.*quantiz.*")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_plain_array_is_named_and_the_rest_is_read(kind, tmp_path):
    make, text = UNREADABLE[kind]
    arrays = nd.read(saved(tmp_path, {"odd": make(), "fine": torch.ones(2)}))
    assert_same(arrays["fine"][...], torch.ones(2))
    with pytest.raises(nd.NdtorchError) as error:
        arrays["odd"][...]
    assert f"array 'odd' {text}" in str(error.value)


def test_the_record_of_the_byte_order_is_honoured(tmp_path):
    path = saved(tmp_path, {"x": torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16)})
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as archive:
        for info in source.infolist():
            data = b"big" if info.filename.endswith("byteorder") else source.read(info)
            archive.writestr(info.filename, data)
    arrays = open_file(path)
    assert arrays["x"].read().tolist() == [0, 1 << 56, 2 << 56]
    assert "bfloat16 of the other byte order" in str(arrays["b"].error)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        arrays = arrays_of(tmp_path, {"x": torch.arange(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert arrays["x"].tolist() == [0, 1, 2]


def test_reading_needs_no_torch(tmp_path):
    path = saved(tmp_path, {"x": torch.arange(3)})
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('ndtorch'); package.__path__ = [{str(Path(nd.__file__).parent)!r}]\n"
        "sys.modules['ndtorch'] = package; sys.modules['torch'] = None\n"
        "from ndtorch.files import open_file\n"
        "print(open_file(sys.argv[1])['x'].read().tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[0, 1, 2]", done.stderr


# ---- writing ----


def test_torch_loads_what_was_written_mapped_too(tmp_path):
    base = torch.arange(24.0).reshape(4, 3, 2)
    tree: dict[str, Any] = {"é 名": torch.ones(1), "deep": {"a": {"b": {"c": torch.tensor(3)}}}, "0": torch.ones(2)}
    tree["columns"] = base.permute(2, 1, 0)
    for name, tensor in TENSORS.items():
        tree[name] = {"x": tensor, "none": tensor[:0], "one": tensor[0, 0].clone()}
    nd.write(tmp_path / "a.pt", tree, verify=True)
    for mmap in (False, True):
        back = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)
        assert_same(back, tree)
        assert back["columns"].stride() == (1, 2, 6)
    with torch.utils.serialization.config.patch("load.calculate_storage_offsets", True):
        assert_same(torch.load(tmp_path / "a.pt", weights_only=True, mmap=True), tree)
    assert {array.layout.offset % 64 for array in open_file(tmp_path / "a.pt").values()} == {0}


def test_strided_and_big_endian_arrays_are_written_as_torch_has_them(tmp_path):
    strided, swapped = (
        np.arange(24.0).reshape(4, 6)[:, ::2],
        np.asfortranarray(np.arange(6).astype(">i4").reshape(2, 3)),
    )
    nd.write(tmp_path / "a.pt", {"strided": strided, "swapped": swapped}, verify=True)
    back = torch.load(tmp_path / "a.pt", weights_only=True)
    assert_same(back["strided"].numpy(), np.ascontiguousarray(strided))
    assert_same(back["swapped"].numpy(), swapped.astype("i4"))


def test_bytes_depend_on_the_arrays_alone_and_an_empty_file_is_a_dict(tmp_path):
    for name in ("a.pt", "b.pt"):
        nd.write(tmp_path / name, {"x": np.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    nd.write(tmp_path / "none.pt", {})
    assert torch.load(tmp_path / "none.pt", weights_only=True) == {}
    assert dict(nd.read(tmp_path / "none.pt")) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array("a"), "cannot write 'odd': .pt holds numbers only and it is <U1. Hint: leave it out"),
        (np.array(["2020"], "M8[D]"), "holds numbers only and it is datetime64[D]"),
        (np.zeros(1, [("x", "f4")]), "holds numbers only"),
        (np.longdouble([1]), "torch has no"),
    ],
    ids=["text", "time", "fields", "longdouble"],
)
def test_what_no_tensor_can_hold_is_named_before_anything_is_written(value, text, tmp_path):
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.write(tmp_path / "a.pt", {"fine": np.ones(3), "odd": value})
    assert "'odd'" in str(error.value)
    assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_be_that_of_an_array_and_of_a_dict(tmp_path):
    np.savez(tmp_path / "a.npz", **{"x": np.ones(1), "x/y": np.ones(1)})
    with pytest.raises(nd.FormatError, match="write: 'x/y' would be the name of an array and of what holds"):
        nd.convert_file(tmp_path / "a.npz", tmp_path / "b.pt")


def test_a_file_without_a_suffix_is_known_by_its_content(tmp_path):
    saved(tmp_path, torch.arange(3)).rename(tmp_path / "data")
    assert open_file(tmp_path / "data").format.name == "pt"


# ---- both ways, over structures that Hypothesis draws ----

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=5).filter(
    lambda key: key not in (".", "..")
)
LEAVES = st.builds(
    lambda name, shape, permuted: (
        TENSORS[name][: shape[0], : shape[1]].permute(1, 0)
        if permuted
        else TENSORS[name][: shape[0], : shape[1]].clone()
    ),
    st.sampled_from(sorted(TENSORS)),
    st.tuples(st.integers(0, 3), st.integers(0, 4)),
    st.booleans(),
)
TREES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=6),
    max_size=4,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(tree=TREES)
def test_any_tree_goes_there_and_back(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    lazy = nd.read(saved(folder, tree))
    nd.write(folder / "b.pt", {name: lazy[name] for name in lazy})
    for back in (torch.load(folder / "b.pt", weights_only=True), torch.load(folder / "a.pt", weights_only=True)):
        assert_same(back, tree)
