"""Zarr stores that lie, lead astray or are broken: an error for what is wrong, and the rest can be read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from comparison import assert_same
from test_zarr_files import GZIP, stored

import ndtorch as nd
from ndtorch.files import open_file

pytestmark = pytest.mark.once

zarr: Any = pytest.importorskip("zarr", minversion="3", reason="zarr-python 3 is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    stored(tmp_path / "a.zarr", np.arange(5), "fine")
    return tmp_path / "a.zarr"


def error_of(path: Path, name: str = "bad") -> str:
    """What reading one array says; what else there is has to be read."""
    arrays = open_file(path)
    assert arrays["fine"].read().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises((nd.FormatError, nd.UnsupportedTypeError)) as caught:
        arrays[name].read()
    return str(caught.value)


def change(path: Path, **claims: Any) -> None:
    """Have the metadata of the array claim something else."""
    place = path / "bad" / ("zarr.json" if (path / "bad/zarr.json").exists() else ".zarray")
    place.write_text(json.dumps(json.loads(place.read_text()) | claims))


# --- chunks


@pytest.mark.parametrize("version", [2, 3])
def test_missing_chunks_are_an_error_with_their_number(version: int, tmp_path: Path) -> None:
    stored(tmp_path / "a.zarr", np.arange(5), "fine", version)
    stored(tmp_path / "a.zarr", np.ones((9, 9)), "bad", version, chunks=(3, 3))
    keys = ("c/1/2", "c/0/0") if version == 3 else ("1.2", "0.0")
    for key in keys:
        (tmp_path / "a.zarr/bad" / key).unlink()
    message = error_of(tmp_path / "a.zarr")
    assert f"2 of its 9 chunks, such as {keys[1]!r}, are missing" in message
    assert "write_empty_chunks" in message


FILLED = {
    "plain": (np.int32, 7, {}),
    "zstd": (np.float32, np.nan, {"compressors": "auto"}),
    "format 2": (np.dtype(">i2"), -3, {"zarr_format": 2}),
    "columns": (np.float64, 2.5, {"filters": zarr.codecs.TransposeCodec(order=(1, 0))}),
    "sharded": (np.uint8, 9, {"shards": (6, 6)}),
    "time": (np.dtype("M8[s]"), np.datetime64("2024-02-29", "s"), {}),
    "bool": (np.bool_, True, {}),
}


@pytest.mark.filterwarnings("ignore:The data type :zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("name", FILLED)
def test_chunks_that_are_not_there_hold_the_fill_value_where_the_caller_says_so(name: str, tmp_path: Path) -> None:
    dtype, fill, words = FILLED[name]
    words = {"compressors": None} | words
    array = zarr.create_array(tmp_path / "a.zarr", shape=(13, 9), chunks=(3, 3), dtype=dtype, fill_value=fill, **words)
    array[3:6, 3:6] = np.ones((3, 3)).astype(dtype)
    expected = array[...]
    with pytest.raises(nd.FormatError, match=r"missing_chunks='fill' \(--missing-chunks fill\) reads them as"):
        nd.read(tmp_path / "a.zarr", to="numpy")["a"][...]
    found = pickle.loads(pickle.dumps(nd.read(tmp_path / "a.zarr", to="numpy", missing_chunks="fill")))["a"]
    assert_same(found[...], expected.astype(found.dtype))
    assert_same(found[2:5, 1:8], expected.astype(found.dtype)[2:5, 1:8])
    nd.convert_file(tmp_path / "a.zarr", tmp_path / "a.npy", missing_chunks="fill", verify=True)
    assert_same(np.load(tmp_path / "a.npy"), expected.astype(found.dtype))


def test_a_chunk_that_goes_after_the_store_was_opened_is_never_filled(tmp_path: Path) -> None:
    for name, words in {"direct": {}, "library": {"filters": zarr.codecs.TransposeCodec(order=(1, 0))}}.items():
        array = zarr.create_array(tmp_path / f"{name}.zarr", shape=(4, 2), chunks=(2, 2), dtype="i4", **words)
        array[:2] = 1
        found = nd.read(tmp_path / f"{name}.zarr", to="numpy", missing_chunks="fill")[name]
        (tmp_path / f"{name}.zarr" / "c/0/0").unlink()
        with pytest.raises((nd.FormatError, OSError), match="c/0/0"):
            found[...]
        assert_same(found[2:], np.zeros((2, 2), np.int32))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_fill_value_that_zarr_does_not_know_is_filled_too(tmp_path: Path, order: tuple[int, int]) -> None:
    codec = zarr.codecs.TransposeCodec(order=order) if order != (0, 1) else ()
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 2), chunks=(2, 2), dtype="u2", filters=codec, compressors=None
    )
    array[:2] = 0x3F80
    claims = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    (tmp_path / "a.zarr/zarr.json").write_text(json.dumps(claims | {"data_type": "bfloat16", "fill_value": -2.5}))
    found = nd.read(tmp_path / "a.zarr", to="numpy", missing_chunks="fill")["a"][...]
    assert_same(found, np.array([[1, 1], [1, 1], [-2.5, -2.5], [-2.5, -2.5]], ml_dtypes.bfloat16))


def test_where_there_is_no_fill_value_nothing_is_filled(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(4,), chunks=(2,), dtype="i4", zarr_format=2)
    claims = json.loads((tmp_path / "a.zarr/.zarray").read_text())
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps(claims | {"fill_value": None}))
    with pytest.raises(nd.FormatError, match="has no fill value for the chunks that are not there"):
        nd.read(tmp_path / "a.zarr", missing_chunks="fill")["a"][...]


def test_what_is_no_way_to_take_missing_chunks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(nd.InvalidOptionError, match="missing_chunks='zero'; expected 'error' or 'fill'"):
        nd.read(tmp_path / "a.zarr", missing_chunks="zero")


@pytest.mark.parametrize("place", ["start", "end"])
def test_chunks_missing_in_a_shard_are_an_error(place: str, path: Path) -> None:
    group = zarr.open_group(path)
    serializer = zarr.codecs.ShardingCodec(chunk_shape=(2, 2), index_location=place)
    for name in ("good", "bad"):
        group.create_array(name, shape=(7, 7), chunks=(4, 4), dtype="i4", serializer=serializer, compressors=None)
    group["good"][...] = 1
    group["bad"][...] = np.arange(49).reshape(7, 7) // 20
    assert open_file(path)["good"].read().sum() == 49
    assert "chunks in shard 'c/0/0' are missing" in error_of(path)
    for array, is_whole in ((group["good"], True), (group["bad"], False)):
        if is_whole:
            assert int(nd.to_torch(array).sum()) == 49
        else:
            with pytest.raises(nd.FormatError, match="chunks in its shards are missing"):
                nd.to_torch(array)


def test_a_shard_that_ends_before_its_index_is_an_error(path: Path) -> None:
    stored(path, np.ones((4, 4)), "bad", chunks=(2, 2), shards=(4, 4))
    (path / "bad/c/0/0").write_bytes(b"short")
    assert "ends before its index" in error_of(path)


@pytest.mark.parametrize("nbytes", [0, 71, 73, 1000])
def test_a_chunk_of_another_size_is_an_error(nbytes: int, path: Path) -> None:
    stored(path, np.ones((9, 9)), "bad", chunks=(3, 3), compressors=None)
    (path / "bad/c/1/1").write_bytes(bytes(nbytes))
    assert "chunk 'c/1/1' has another size; expected 72" in error_of(path)


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("damage", ["bomb", "short", "junk", "empty"])
def test_a_chunk_that_unpacks_to_another_size_is_an_error(codec: str, damage: str, path: Path) -> None:
    import numcodecs

    kinds = {"gzip": zarr.codecs.GzipCodec(), "zstd": zarr.codecs.ZstdCodec(), "blosc": zarr.codecs.BloscCodec()}
    stored(path, np.ones((9, 9)), "bad", compressors=kinds[codec])
    encode = numcodecs.get_codec({"id": codec}).encode
    raw = {"bomb": encode(bytes(50 << 20)), "short": encode(bytes(8)), "junk": b"\x02\x01 junk" * 9, "empty": b""}
    (path / "bad/c/0/0").write_bytes(raw[damage])
    assert "bad" in error_of(path)


# --- metadata


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"shape": [1 << 40, 1 << 40]}, "more bytes than there are addresses"),
        ({"shape": [1 << 30, 9]}, "are missing|claims"),
        ({"shape": [-1, 9]}, "read: "),
        ({"shape": [1] * 100}, "read: "),
        ({"shape": "abc"}, "read: "),
        ({"data_type": "float4_e2m1fn"}, "cannot be read by zarr"),
        ({"data_type": {"name": "numpy.datetime64"}}, "cannot be read by zarr"),
        ({"codecs": []}, "cannot be read by zarr"),
        ({"codecs": [{"name": "nobody knows"}]}, "cannot be read by zarr"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}}, "read: "),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 3]}}}, "claims chunks of"),
        ({"node_type": "file"}, "claims to be a 'file'"),
        ({"fill_value": "many"}, "cannot be read by zarr"),
    ],
)
def test_metadata_that_says_nothing_sensible_is_an_error(claims: dict[str, Any], words: str, path: Path) -> None:
    stored(path, np.ones((9, 9)), "bad", chunks=(3, 3), compressors=GZIP)
    change(path, **claims)
    import re

    assert re.search(words, error_of(path))


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_metadata_that_is_no_json_object_is_an_error(raw: bytes, path: Path) -> None:
    stored(path, np.ones(3), "bad")
    (path / "bad/zarr.json").write_bytes(raw)
    assert "zarr.json is no JSON" in error_of(path)


class _Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("key", ["filters", "compressor"])
def test_nothing_is_ever_unpickled(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "a.zarr", np.arange(5), "fine", 2)
    stored(tmp_path / "a.zarr", np.ones(3), "bad", 2, compressors=None)
    (tmp_path / "a.zarr/bad/0").write_bytes(pickle.dumps(_Trap()))
    codec = {"id": "pickle", "protocol": 4}
    change(tmp_path / "a.zarr", **{key: [codec] if key == "filters" else codec})
    assert "never unpickled" in error_of(tmp_path / "a.zarr")
    change(tmp_path / "a.zarr", dtype="|O")
    assert "never unpickled" in error_of(tmp_path / "a.zarr")
    assert not Path("executed").exists()


def test_text_of_varying_length_is_named(path: Path) -> None:
    stored(path, np.array(["a", "bc"], np.dtypes.StringDType()), "bad")
    assert "varying length" in error_of(path)


# --- folders


def test_links_that_lead_out_are_not_followed(path: Path) -> None:
    stored(path, np.ones(3), "bad", compressors=None)
    secret = path.with_name("secret")
    secret.write_bytes(bytes(24))
    (path / "bad/c/0").unlink()
    (path / "bad/c/0").symlink_to(secret)
    assert "has a link out of its folder, 'c/0'" in error_of(path)
    (path / "bad/c/0").unlink()
    (path / "bad/zarr.json").rename(path.with_name("zarr.json"))
    (path / "bad/zarr.json").symlink_to(path.with_name("zarr.json"))
    assert "is a link out of its folder" in error_of(path)
    (path / "group").symlink_to(path.parent)
    (path / "circle").symlink_to(path)
    assert "is a link, to" in error_of(path, "group")
    assert "is a link, to" in error_of(path, "circle")


def test_folders_that_are_no_stores_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(nd.FormatError, match="no zarr store"):
        nd.read(tmp_path / "b.zarr")
    (tmp_path / "c.zarr").touch()
    with pytest.raises(nd.FormatError, match="is a file; a zarr store is a folder"):
        nd.read(tmp_path / "c.zarr")
    (path / "bad").mkdir()
    assert "is a folder that has none of" in error_of(path)


def test_groups_in_groups_have_an_end(path: Path) -> None:
    group = json.loads((path / "zarr.json").read_text())
    inner = path
    for _ in range(110):
        inner = inner / "g"
        inner.mkdir()
        (inner / "zarr.json").write_text(json.dumps(group))
    assert "lies more than 100 groups deep" in error_of(path, "/".join(["g"] * 101))
